"""CPU path of the low-rank family: products of the library GEMM, which reads sliced factors in place."""

import torch.nn.functional as F
from torch import Tensor

from sieve_kernels.arguments import as_rows


def linear(x: Tensor, A: Tensor, B: Tensor, bias: Tensor | None) -> Tensor:
    """y [..., m] = (x Aᵀ) Bᵀ + bias; x [..., n], A [r, n], B [m, r], bias [m]."""
    return F.linear(F.linear(x, A), B, bias)


def linear_backward(grad: Tensor, x: Tensor, A: Tensor, B: Tensor, needed: list[bool]) -> list[Tensor]:
    """Gradients of x [..., n], A [r, n] and B [m, r], those that are needed; grad [..., m]. Recomputes z = x Aᵀ."""
    rows, tokens = as_rows(grad), as_rows(x)
    gradients = []
    if needed[0] or needed[1]:
        dz = rows @ B
        gradients += [(dz @ A).reshape(x.shape)] if needed[0] else []
        gradients += [dz.T @ tokens] if needed[1] else []
    if needed[2]:
        gradients += [rows.T @ (tokens @ A.T)]
    return gradients
