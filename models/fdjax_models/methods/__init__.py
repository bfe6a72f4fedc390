"""Methods: pipelines as values, and how each is run."""
