"""The Wan diffusion transformer, streamed."""
