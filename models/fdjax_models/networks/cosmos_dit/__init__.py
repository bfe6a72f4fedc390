"""The Cosmos-Predict2 diffusion transformer."""
