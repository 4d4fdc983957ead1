"""A model to be pruned: loading it, its linear layers and blocks."""
