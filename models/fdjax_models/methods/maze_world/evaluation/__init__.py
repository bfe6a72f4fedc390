"""Measures what maze-world generates against its simulator."""
