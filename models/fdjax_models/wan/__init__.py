"""The Wan family: diffusion transformer, autoencoders, controls."""
