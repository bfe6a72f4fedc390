"""Self-Forcing: streaming text to video."""
