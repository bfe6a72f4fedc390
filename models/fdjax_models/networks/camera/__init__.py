"""Cameras: trajectories, rays, and the encoder that hands them to a Wan network."""
