"""Compiled CPU path of the Gram family: bf16 and float32 tokens on AMX tiles (csrc/gram.cpp), or with AVX-512
(csrc/gram_avx512.cpp). x is copied only in packed blocks of a few tokens."""

import ctypes
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from sieve_kernels.core import library
from sieve_kernels.gram import torch_backend

_POINTER, _SIZE = ctypes.c_void_p, ctypes.c_int64
_TYPES = {torch.bfloat16: 0, torch.float32: 1}


@lru_cache
def _sieve_gram() -> Callable[..., int]:
    function = library.library().sieve_gram
    function.argtypes = [ctypes.c_int, _POINTER, _SIZE, *(_POINTER, _SIZE, _SIZE) * 2, _POINTER, _SIZE]
    return function


def gram_(out: Tensor, x: Tensor, weight: Tensor | None) -> None:
    """out [n, n] += xᵀ diag(w) x; x [T, n], weight [T] bool or in out's dtype. Reads the upper triangle of `out`."""
    if not _accumulate(out, x, None, weight):
        torch_backend.gram_(out, x, weight)


def cross_gram_(out: Tensor, x: Tensor, y: Tensor, weight: Tensor | None) -> None:
    """out [n, m] += xᵀ diag(w) y; x [T, n], y [T, m], weight [T] bool or in out's dtype."""
    if not _accumulate(out, x, y, weight):
        torch_backend.cross_gram_(out, x, y, weight)


def _accumulate(out: Tensor, x: Tensor, y: Tensor | None, weight: Tensor | None) -> bool:
    """Returns whether the compiled kernel ran: it needs a float32 `out`, contiguous rows, and weights 0 and 1."""
    if out.dtype != torch.float32 or out.stride(1) != 1:
        return False
    index, count = None, x.shape[0]
    if weight is not None:
        kept = weight != 0
        if weight.dtype != torch.bool and not (weight[kept] == 1).all():
            return False
        index = kept.nonzero()
        count = index.shape[0]
    if count and out.numel():
        x, y = _dense_rows(x), None if y is None else _dense_rows(y)
        right = (None, 0, 0) if y is None else (y.data_ptr(), y.stride(0), y.shape[1])
        left = (x.data_ptr(), x.stride(0), x.shape[1])
        selected = None if index is None else index.data_ptr()
        if not _sieve_gram()(_TYPES[x.dtype], out.data_ptr(), out.stride(0), *left, *right, selected, count):
            return False
        torch.autograd.graph.increment_version(out)
    return True


def _dense_rows(x: Tensor) -> Tensor:
    return x if x.stride(1) == 1 else x.contiguous()
