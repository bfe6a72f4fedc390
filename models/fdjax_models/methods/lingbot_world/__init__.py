"""LingBot-World: a world that is walked through with a camera (14B and 1.3B)."""
