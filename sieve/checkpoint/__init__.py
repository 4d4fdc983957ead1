"""A pruned model as a folder: saving it, loading it, and teaching transformers to load it.

Importing this package does not import transformers: the quantizer that swaps pruned layers in is registered when
transformers loads its own (see `registration`).
"""

from sieve.checkpoint import registration as _registration
from sieve.checkpoint.folder import load, mark, save
from sieve.checkpoint.size import model_bytes, weight_bytes

_registration.register()

__all__ = ["load", "mark", "model_bytes", "save", "weight_bytes"]
