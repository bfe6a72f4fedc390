"""How the weights of maze-world are made; not needed to run it."""
