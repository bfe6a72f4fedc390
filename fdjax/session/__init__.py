"""Live sessions beyond one process: saved, and taken up again."""
