"""HD-map video as a control: by a VAE, or by its pixels."""
