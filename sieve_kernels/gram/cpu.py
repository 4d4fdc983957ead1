"""CPU path of the Gram family: symmetric rank-k updates of the library BLAS, half the arithmetic of X.T @ X."""

import torch
from scipy.linalg.blas import dsyrk, ssyrk
from torch import Tensor

ROWS = 2048
"""Rows converted at a time, so that a bf16 input never exists whole in fp32."""


def gram_(out: Tensor, x: Tensor, weight: Tensor | None) -> None:
    """out [n, n] += xᵀ diag(w) x; x [T, n], weight [T] in out's dtype."""
    if weight is not None and bool((weight < 0).any()):
        cross_gram_(out, x, x, weight)
        return
    work = out.contiguous()
    for rows, w in _blocks(x, weight):
        rows = rows.to(work.dtype)
        if w is not None:
            rows = rows * w.sqrt()[:, None]
        _syrk(work, rows.contiguous())
    work.copy_(work.triu() + work.triu(1).T)
    if work is not out:
        out.copy_(work)


def cross_gram_(out: Tensor, x: Tensor, y: Tensor, weight: Tensor | None) -> None:
    """out [n, m] += xᵀ diag(w) y; x [T, n], y [T, m], weight [T] in out's dtype."""
    for start in range(0, x.shape[0], ROWS):
        rows = slice(start, start + ROWS)
        a, b = x[rows].to(out.dtype), y[rows].to(out.dtype)
        if weight is not None:
            w = weight[rows, None]
            a, b = (a * w).masked_fill(w == 0, 0), b.masked_fill(w == 0, 0)
        out.addmm_(a.T, b)


def _blocks(x: Tensor, weight: Tensor | None):
    for start in range(0, x.shape[0], ROWS):
        rows, w = x[start : start + ROWS], None
        if weight is not None:
            w = weight[start : start + ROWS]
            rows, w = rows[w != 0], w[w != 0]
        if len(rows):
            yield rows, w


def _syrk(out: Tensor, x: Tensor) -> None:
    """Upper triangle of out += xᵀ x in place. BLAS counts columns first: it sees both transposed, without a copy."""
    syrk = dsyrk if out.dtype == torch.float64 else ssyrk
    syrk(1.0, x.numpy().T, beta=1.0, c=out.numpy().T, lower=1, overwrite_c=1)
