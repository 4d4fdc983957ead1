"""A pruned model as a folder: saving it, loading it, and teaching transformers to load it."""
