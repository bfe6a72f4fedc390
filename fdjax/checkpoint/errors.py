"""What is wrong with a checkpoint."""


class CheckpointError(ValueError):
    """A file that cannot be read as a checkpoint; the message names it and why."""
