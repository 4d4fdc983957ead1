"""A pruned model as a folder: saving it, loading it, and teaching transformers to load it."""

from sieve.checkpoint.folder import load, mark, save
from sieve.checkpoint.size import model_bytes, weight_bytes

__all__ = ["load", "mark", "model_bytes", "save", "weight_bytes"]
