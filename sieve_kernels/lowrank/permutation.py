"""What kernels need of a pivoted pair's permutation, computed once for as long as the permutation lives unchanged."""

from collections.abc import Callable
from weakref import ref

import torch
from torch import Tensor

_known: dict[tuple[int, object], tuple[ref, int, int, object]] = {}
"""By a permutation's identity and what was computed of it: itself, its version, its address, the result."""


def inverse(permutation: Tensor) -> Tensor:
    """index [m] int32 with index[permutation[i]] = i, so that y[permutation] = v is y = v[index].

    What is no permutation gives indices that are no inverse, but lie within 0 … m - 1.
    """
    return _remembered(permutation, None, lambda: torch.argsort(permutation).to(torch.int32))


def places(permutation: Tensor, r: int) -> tuple[Tensor, Tensor]:
    """The permutation's first r entries and the others, int32: where each column of [z, z Cᵀ] goes in y.

    What is no permutation gives places that are others, but each of 0 … m - 1 once.
    """

    def split() -> tuple[Tensor, Tensor]:
        checked = torch.argsort(inverse(permutation)).to(torch.int32)
        return checked[:r], checked[r:]

    return _remembered(permutation, r, split)


def _remembered(permutation: Tensor, what: object, compute: Callable[[], object]):
    """compute(), or what it returned for this permutation before.

    Tensors of inference mode count no changes, and what a CUDA graph is to compute is not yet there: neither is kept.
    """
    key = id(permutation), what
    known = _known.get(key)
    if known is not None and not permutation.is_inference():
        of, version, address, result = known
        if of() is permutation and version == permutation._version and address == permutation.data_ptr():
            return result
    result = compute()
    capturing = permutation.is_cuda and torch.cuda.is_current_stream_capturing()
    if not permutation.is_inference() and not capturing:
        of = ref(permutation, lambda _: _known.pop(key, None))
        _known[key] = of, permutation._version, permutation.data_ptr(), result
    return result
