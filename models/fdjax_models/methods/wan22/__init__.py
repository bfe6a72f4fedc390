"""Wan 2.2 TI2V-5B: text, and an image if there is one, to video in one chunk."""
