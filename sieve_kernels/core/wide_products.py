"""Products of 16-bit numbers on processors that have no instructions for them: in float32, by the library.

Without such instructions (AVX-512 for bfloat16, AVX-512 FP16 for float16) the library multiplies 16-bit matrices one
number at a time. To convert both factors, multiply and round the result takes an eighth of the time, and rounds once;
meanwhile there are copies of an operator's arguments that are twice as large.
"""

import platform
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, wraps
from typing import Any, TypeVar

import torch
from torch import Tensor

Function = TypeVar("Function", bound=Callable)

# What the library says of itself; it is not in every build of torch.
_FAST = {torch.bfloat16: "_is_mkldnn_bf16_supported", torch.float16: "_is_mkldnn_fp16_supported"}


@lru_cache
def multiplies_slowly(dtype: torch.dtype) -> bool:
    """Whether the library's products of this dtype are slow on this processor. Only of x86 it is known."""
    if dtype not in _FAST or platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    fast = getattr(torch.ops.mkldnn, _FAST[dtype], None)
    return fast is None or not fast()


def multiplies_wide(rows: Tensor) -> bool:
    """Whether products of these rows are made in float32."""
    return rows.is_cpu and multiplies_slowly(rows.dtype)


PART = 1 << 20
"""Numbers of a weight that are converted at a time: their copies stay in the cache, and in memory that the process has.
An output head of 49152×576, rows 16 · 64 · 256: 30 · 68 · 208 ms, converted whole 151 · 194 · 327 (AMD Zen 3, one
thread)."""


def parts(W: Tensor) -> Iterator[slice]:
    """Rows of W [m, n] that are converted at a time."""
    step = max(1, PART // W.shape[1])
    return (slice(first, first + step) for first in range(0, W.shape[0], step))


def wide_products(function: Function) -> Function:
    """`function`, whose first argument is a tensor or a list of some: it is given float32 where their dtype is slow.

    Its arguments of that dtype, also those in lists, are converted, and its results are converted back.
    """

    @wraps(function)
    def call(first: Tensor | Sequence[Tensor], *others: Any) -> Any:
        rows = first if isinstance(first, Tensor) else first[0]
        if not multiplies_wide(rows):
            return function(first, *others)
        dtype = rows.dtype
        found = function(*(_converted(one, dtype, torch.float32) for one in (first, *others)))
        return _converted(found, torch.float32, dtype)

    return call


def _converted(value: Any, old: torch.dtype, new: torch.dtype) -> Any:
    if isinstance(value, Tensor):
        return value.to(new) if value.dtype is old else value
    if isinstance(value, list | tuple):
        return [_converted(one, old, new) for one in value]
    return value
