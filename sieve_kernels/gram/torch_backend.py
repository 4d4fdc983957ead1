"""CPU path of the Gram family: the upper triangle in panels, each one product of the library GEMM.

It does not use the library's symmetric update. OpenBLAS (SciPy's `ssyrk`) keeps its worker threads spinning for tens of
milliseconds after each call, and they compete with torch's threads: in a loop it looks faster than `X.T @ X`, but it
slows down the forward pass between two calls by more than it saves.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

PANEL = 320
"""Rows of `out` per product. Narrower panels waste less below the diagonal, n(n + PANEL)/2 products instead of n²/2,
but the library's GEMM loses speed under about 256 rows."""

MIRROR_PANEL = 64
"""Columns that `mirror_` writes at a time: few enough that the cache lines of its transposed reads survive."""

BLOCK = 1 << 24
"""Most elements of a converted, selected or weighted copy of x at a time (64 MiB in float32)."""


def gram_(out: Tensor, x: Tensor, weight: Tensor | None) -> None:
    """out [n, n] += xᵀ diag(w) x; x [T, n], weight [T] bool or in out's dtype. Reads the upper triangle of `out`."""
    for rows, weights in _blocks(x, weight, out):
        for start in range(0, x.shape[1], PANEL):
            left = _scaled(rows[:, start : start + PANEL], weights)
            out[start : start + PANEL, start:].addmm_(left.T, rows[:, start:])
    mirror_(out)


def cross_gram_(out: Tensor, x: Tensor, y: Tensor, weight: Tensor | None) -> None:
    """out [n, m] += xᵀ diag(w) y; x [T, n], y [T, m], weight [T] bool or in out's dtype."""
    for (left, weights), (right, _) in zip(_blocks(x, weight, out), _blocks(y, weight, out), strict=True):
        out.addmm_(_scaled(left, weights).T, right)


def mirror_(out: Tensor) -> None:
    """Copy the upper triangle of out [n, n] to the lower."""
    n = out.shape[0]
    for start in range(0, n, MIRROR_PANEL):
        end = min(start + MIRROR_PANEL, n)
        if end < n:
            out[end:, start:end] = out[start:end, end:].T
        corner = out[start:end, start:end]
        torch.add(corner.triu(), corner.triu(1).T, out=corner)


def _blocks(x: Tensor, weight: Tensor | None, out: Tensor) -> Iterator[tuple[Tensor, Tensor | None]]:
    """x [T, n] in row blocks of out's dtype without the tokens of weight zero, and their weights where not all 1."""
    copied = x.dtype != out.dtype or weight is not None
    step = max(1, BLOCK // max(1, *out.shape)) if copied else max(1, x.shape[0])
    for start in range(0, x.shape[0], step):
        rows, weights = x[start : start + step], None
        if weight is not None:
            weights = weight[start : start + step]
            kept = weights != 0
            if not kept.all():
                rows, weights = rows[kept], weights[kept]
            if (weights == 1).all():
                weights = None
        yield rows.to(out.dtype), weights


def _scaled(rows: Tensor, weights: Tensor | None) -> Tensor:
    return rows if weights is None else rows * weights[:, None]
