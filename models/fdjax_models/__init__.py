"""Architectures and methods."""
