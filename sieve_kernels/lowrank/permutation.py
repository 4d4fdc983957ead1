"""The inverse of a pivoted pair's permutation, computed once for as long as the permutation lives unchanged."""

from weakref import ref

import torch
from torch import Tensor

_inverses: dict[int, tuple[ref, int, int, Tensor]] = {}
"""By the identity of a permutation: itself, its version, its address, its inverse."""


def inverse(permutation: Tensor) -> Tensor:
    """index [m] int32 with index[permutation[i]] = i, so that y[permutation] = v is y = v[index].

    What is no permutation gives indices that are no inverse, but lie within 0 … m - 1. Tensors of inference mode count
    no changes, and what a CUDA graph is to compute is not yet there: neither is remembered.
    """
    known = _inverses.get(id(permutation))
    if known is not None and not permutation.is_inference():
        of, version, address, index = known
        if of() is permutation and version == permutation._version and address == permutation.data_ptr():
            return index
    index = torch.argsort(permutation).to(torch.int32)
    capturing = permutation.is_cuda and torch.cuda.is_current_stream_capturing()
    if not permutation.is_inference() and not capturing:
        key = id(permutation)
        of = ref(permutation, lambda _: _inverses.pop(key, None))
        _inverses[key] = of, permutation._version, permutation.data_ptr(), index
    return index
