"""Causal Wan 2.2 14B (FastVideo): two experts, streaming text to video."""
