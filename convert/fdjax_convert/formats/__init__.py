"""Files of published checkpoints: readers and writers, without torch."""
