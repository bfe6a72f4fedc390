"""TAEHV and LightTAE: tiny causal video autoencoders for Wan latents."""
