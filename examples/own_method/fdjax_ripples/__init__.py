"""A method for fdjax from another package: grey ripples that follow given levels."""
