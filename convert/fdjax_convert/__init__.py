"""Converters between published PyTorch checkpoints and fdjax parameters."""
