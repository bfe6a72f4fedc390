"""Cosmos-Predict2.5: text and image to video."""
