"""A pruned model as a folder: saving it, loading it, and teaching transformers to load it."""

from sieve.checkpoint.folder import load, mark, mark_masked, save
from sieve.checkpoint.size import model_bytes, model_parameters, weight_bytes

__all__ = ["load", "mark", "mark_masked", "model_bytes", "model_parameters", "save", "weight_bytes"]
