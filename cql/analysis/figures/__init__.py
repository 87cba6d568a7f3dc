"""Pictures of runs and of exact curves, each a function that returns a matplotlib ``Figure``."""
