"""What every streaming diffusion transformer shares."""
