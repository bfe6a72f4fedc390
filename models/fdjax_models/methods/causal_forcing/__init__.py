"""Causal-Forcing: Wan 2.1 1.3B, streaming, by chunks or frame by frame."""
