"""Compiled CPU path of the pointwise operators (csrc/pointwise.cpp)."""

import ctypes
import struct
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from sieve_kernels.core import library
from sieve_kernels.core.checks import as_rows
from sieve_kernels.lowrank.cpp_backend import rows_in_one_piece

_TYPES = {torch.bfloat16: 0, torch.float32: 1}


@lru_cache
def _function(name: str) -> Callable[[bytes], None]:
    function = getattr(library.library(), name)
    function.argtypes, function.restype = [ctypes.c_char_p], None
    return function


def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """x [..., n], weight [n] → [..., n]."""
    y = torch.empty(x.shape, dtype=x.dtype)
    rows = rows_in_one_piece(as_rows(x))
    weight = weight.contiguous()
    _function("sieve_rms_norm")(
        struct.pack(
            "7qd",
            _TYPES[x.dtype],
            rows.data_ptr(),
            rows.stride(0),
            *rows.shape,
            weight.data_ptr(),
            y.data_ptr(),
            epsilon,
        )
    )
    return y


def rotary(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """q [b, h, t, d], k [b, g, t, d], cos and sin [b or 1, t, d] → q and k, strides kept."""
    q, k, cos, sin = map(rows_in_one_piece, (q, k, cos, sin))
    if cos.stride() != sin.stride():
        cos, sin = cos.contiguous(), sin.contiguous()
    batches, _, tokens, size = q.shape
    numbers = [_TYPES[q.dtype], batches, tokens, size, cos.data_ptr(), sin.data_ptr()]
    numbers += [0 if cos.shape[0] == 1 else cos.stride(0), cos.stride(1)]
    rotated = torch.empty_like(q), torch.empty_like(k)
    for x, y in zip((q, k), rotated, strict=True):
        numbers += [x.data_ptr(), *x.stride()[:3], y.data_ptr(), *y.stride()[:3], x.shape[1]]
    _function("sieve_rotary")(struct.pack(f"{len(numbers)}q", *numbers))
    return rotated


def channel_sums(x: Tensor, mask: Tensor | None) -> Tensor:
    """x [..., n], mask [T] bool → [3, n] float32."""
    rows = rows_in_one_piece(as_rows(x))
    sums = torch.zeros(3, rows.shape[1])
    mask = None if mask is None else mask.contiguous()
    chosen = 0 if mask is None else mask.data_ptr()
    numbers = _TYPES[x.dtype], rows.data_ptr(), rows.stride(0), *rows.shape, chosen, sums.data_ptr()
    _function("sieve_channel_sums")(struct.pack("7q", *numbers))
    return sums
