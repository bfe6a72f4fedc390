"""maze-world: a small world model of mazes that ships with its weights."""
