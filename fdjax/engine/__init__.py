"""The streaming pipeline: one chunk after another through pure functions."""
