"""Rules: which published tensor fills which parameter, and how."""
