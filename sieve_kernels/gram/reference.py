"""Definitions in plain torch: the oracle of the tests, and the formula to read first.

T tokens, n and m features. A token of weight zero is skipped, not multiplied by zero: padding rows of a masked
softmax are often NaN, and 0 · NaN is NaN.
"""

from torch import Tensor

from sieve_kernels.core.checks import as_rows


def gram(out: Tensor, x: Tensor, weight: Tensor | None = None) -> Tensor:
    """out + xᵀ diag(w) x in the dtype of `out`; x [..., n], weight [...], out [n, n]."""
    return cross_gram(out, x, x, weight)


def cross_gram(out: Tensor, x: Tensor, y: Tensor, weight: Tensor | None = None) -> Tensor:
    """out + xᵀ diag(w) y in the dtype of `out`; x [..., n], y [..., m], weight [...], out [n, m]."""
    x, y = as_rows(x).to(out.dtype), as_rows(y).to(out.dtype)
    if weight is not None:
        w = weight.reshape(-1, 1).to(out.dtype)
        x, y = (x * w).masked_fill(w == 0, 0), y.masked_fill(w == 0, 0)
    return out + x.T @ y
