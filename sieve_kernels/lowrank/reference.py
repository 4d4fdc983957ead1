"""Definitions in plain torch: the oracle of the tests, and the formula to read first.

T tokens, n inputs, m outputs, rank r.
"""

from torch import Tensor


def linear(x: Tensor, A: Tensor, B: Tensor, bias: Tensor | None = None) -> Tensor:
    """y = (x Aᵀ) Bᵀ + bias; x [..., n], A [r, n], B [m, r], bias [m] → [..., m]."""
    y = (x @ A.T) @ B.T
    return y if bias is None else y + bias


def linear_backward(grad: Tensor, x: Tensor, A: Tensor, B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x [..., n], A [r, n] and B [m, r], given that of y, grad [..., m]; z = x Aᵀ is recomputed."""
    z, dz = x @ A.T, grad @ B
    return dz @ A, dz.flatten(0, -2).T @ x.flatten(0, -2), grad.flatten(0, -2).T @ z.flatten(0, -2)
