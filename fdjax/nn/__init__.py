"""Layers and parameter helpers that several models share."""
