"""Key layouts of published checkpoints, one module per network."""
