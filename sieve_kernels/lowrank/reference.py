"""Definitions in plain torch: the oracle of the tests, and the formula to read first.

T tokens, n inputs, m outputs, rank r.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from sieve_kernels.core.checks import as_rows
from sieve_kernels.lowrank.quantize import dequantize_rows


def linear(x: Tensor, A: Tensor, B: Tensor, bias: Tensor | None = None) -> Tensor:
    """y = (x Aᵀ) Bᵀ + bias; x [..., n], A [r, n], B [m, r], bias [m] → [..., m]."""
    y = (x @ A.T) @ B.T
    return y if bias is None else y + bias


def linear_backward(grad: Tensor, x: Tensor, A: Tensor, B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x [..., n], A [r, n] and B [m, r], given that of y, grad [..., m]; z = x Aᵀ is recomputed."""
    z, dz = x @ A.T, grad @ B
    return dz @ A, dz.flatten(0, -2).T @ x.flatten(0, -2), grad.flatten(0, -2).T @ z.flatten(0, -2)


def pivoted(x: Tensor, A: Tensor, C: Tensor, permutation: Tensor, bias: Tensor | None = None) -> Tensor:
    """z = x Aᵀ, y[..., permutation] = [z, z Cᵀ], plus bias; x [..., n], A [r, n], C [m - r, r], bias [m] → [..., m]."""
    z = x @ A.T
    y = torch.cat([z, z @ C.T], -1)[..., torch.argsort(permutation)]
    return y if bias is None else y + bias


def pivoted_backward(
    grad: Tensor, x: Tensor, A: Tensor, C: Tensor, permutation: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x [..., n], A [r, n] and C [m - r, r], given that of y, grad [..., m]; z = x Aᵀ is recomputed."""
    r = A.shape[0]
    direct, through = grad[..., permutation[:r]], grad[..., permutation[r:]]
    z, dz = x @ A.T, direct + through @ C
    return dz @ A, as_rows(dz).T @ as_rows(x), as_rows(through).T @ as_rows(z)


def group(
    x: Tensor, As: Sequence[Tensor], Bs: Sequence[Tensor], biases: Sequence[Tensor] | None = None
) -> list[Tensor]:
    """y_i = (x A_iᵀ) B_iᵀ + bias_i; x [..., n], A_i [r_i, n], B_i [m_i, r_i], bias_i [m_i] → each [..., m_i]."""
    return [linear(x, A, B, bias) for A, B, bias in zip(As, Bs, biases or [None] * len(As), strict=True)]


def dense(x: Tensor, W: Tensor, bias: Tensor | None = None) -> Tensor:
    """y = x Wᵀ + bias; x [..., n], W [m, n], bias [m] → [..., m]."""
    y = x @ W.T
    return y if bias is None else y + bias


def quantized(
    x: Tensor, A_q: Tensor, A_scale: Tensor, B_q: Tensor, B_scale: Tensor, bias: Tensor | None = None
) -> Tensor:
    """`linear` with the factors that integers and scales stand for; x [..., n] → [..., m]."""
    A = dequantize_rows(A_q, A_scale, x.shape[-1], x.dtype)
    return linear(x, A, dequantize_rows(B_q, B_scale, A_q.shape[0], x.dtype), bias)


def population(x: Tensor, A: Tensor, B: Tensor, ranks: Tensor) -> Tensor:
    """y[p] = (x[p] A[:r]ᵀ) B[:, :r]ᵀ, r = ranks[p]; x [P, T, n], A [R, n], B [m, R], ranks [P] → [P, T, m]."""
    within = torch.arange(A.shape[0], device=x.device) < ranks[:, None, None]
    return torch.where(within, x @ A.T, 0) @ B.T
