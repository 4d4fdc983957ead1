"""Common to the launchers of pointwise kernels."""

from collections.abc import Callable

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from sieve_kernels.common import tiles
from sieve_kernels.core.checks import as_rows
from sieve_kernels.core.device import INTERPRETED, has_tma, num_sms

MOST_COLUMNS = 1024
"""Most columns of a row in a program."""

GROUPED_ROWS = 4
"""Rows of a program that gathers columns, if there are many rows: it reads the indices once for all of them."""


@triton.jit
def begin(PDL: tl.constexpr):
    """Wait for the previous launch, whose end this launch may overlap; from here on the next launch may start."""
    if PDL:
        gdc_wait()
        gdc_launch_dependents()


def common_constants(x: Tensor) -> dict[str, object]:
    """Constants of every kernel, for an input x."""
    overlapping = has_tma(x.device) and not INTERPRETED
    return {
        "ACC": tiles.TRITON_DTYPES[tiles.accumulator(x.dtype)],
        "PDL": overlapping,
        **({"launch_pdl": True} if overlapping else {}),
    }


def fresh_output(x: Tensor, shape: tuple[int, ...]) -> Callable[[Tensor], Tensor]:
    """A function of x that allocates a kernel's output; `empty_like` takes half the time of `empty`."""
    compute = tiles.compute_dtype(x.dtype)
    if compute == x.dtype and x.shape == shape and x.is_contiguous():
        return torch.empty_like
    device = x.device
    return lambda x: torch.empty(shape, dtype=compute, device=device)


def rows_in_place(x: Tensor) -> Tensor | None:
    """x [..., n] as a matrix [T, n] of rows of contiguous elements; None if that takes a copy."""
    rows = as_rows(x)
    return rows if rows.data_ptr() == x.data_ptr() and are_in_one_piece(rows) else None


def in_one_piece(t: Tensor | None) -> Tensor | None:
    """The tensor, or a copy, with rows of contiguous elements."""
    return t if are_in_one_piece(t) else t.contiguous()


def are_in_one_piece(*tensors: Tensor | None) -> bool:
    return all(t is None or t.stride(-1) == 1 or t.shape[-1] == 1 for t in tensors)


def column_blocks(T: int, n: int, gathered: bool, device: torch.device) -> tuple[int, int, int]:
    """Rows, columns and warps of a program that computes part of [T, n].

    A thread computes 16 bytes of a row where it loads them at once, and two elements where it gathers them one by one,
    so that a warp's loads are close together.
    """
    each = 2 if gathered else 8
    block = min(triton.next_power_of_2(n), MOST_COLUMNS // 2 if gathered else MOST_COLUMNS)
    programs = T * triton.cdiv(n, block)
    if programs < num_sms(device):
        block = max(block // 4, 32)
    most = GROUPED_ROWS if gathered else GROUPED_ROWS // 2
    rows = most if programs >= 4 * most * num_sms(device) else 1
    return rows, block, max(1, block // (32 * each))
