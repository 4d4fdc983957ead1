"""GPU path of the low-rank family for many rows: the library's products, at their best there, and few copies.

What needs no other order of things than on a CPU is the CPU's (`cpu.py`). Blocks of tokens, which keep intermediates
in a CPU's cache, would only cost launches here.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from sieve_kernels.arguments import as_rows
from sieve_kernels.lowrank.cpu import linear
from sieve_kernels.lowrank.permutation import inverse
from sieve_kernels.pointwise.columns import gather_columns


def group(x: Tensor, As: Sequence[Tensor], Bs: Sequence[Tensor], biases: Sequence[Tensor] | None) -> list[Tensor]:
    """y_i [..., m_i] = (x A_iᵀ) B_iᵀ + bias_i; x [..., n], A_i [r_i, n], B_i [m_i, r_i], bias_i [m_i].

    Stacked factors would be fewer products, but a second copy of the weights.
    """
    biases = biases or [None] * len(As)
    return [linear(x, A, B, bias) for A, B, bias in zip(As, Bs, biases, strict=True)]


def pivoted(x: Tensor, A: Tensor, C: Tensor, permutation: Tensor, bias: Tensor | None) -> Tensor:
    """y [..., m], y[..., permutation] = [z, z Cᵀ] + bias[permutation], z = x Aᵀ.

    x [..., n], A [r, n], C [m - r, r], permutation [m] int64, bias [m].
    """
    y = gather_columns(halves(as_rows(x), A, C), inverse(permutation), bias)
    return y.view(*x.shape[:-1], len(permutation))


def halves(x: Tensor, A: Tensor, C: Tensor) -> Tensor:
    """[z, z Cᵀ] [T, m], z = x Aᵀ, each half written where it belongs; x [T, n], A [r, n], C [m - r, r]."""
    r = A.shape[0]
    # A CPU's library reads a number beyond rows of odd length in 16 bits, to multiply it by zero: it must not be NaN.
    both = (x.new_empty if x.is_cuda else x.new_zeros)((x.shape[0], r + C.shape[0]))
    z = both[:, :r]
    torch.mm(x, A.T, out=z)
    torch.mm(z, C.T, out=both[:, r:])
    return both


def pivoted_expanded(x: Tensor, A: Tensor, C: Tensor, permutation: Tensor, bias: Tensor | None) -> Tensor:
    """`pivoted` by the pair's full second factor, made for this call: no columns move, and r² more is multiplied."""
    return linear(x, A, expanded(C, permutation), bias)


def expanded(C: Tensor, permutation: Tensor) -> Tensor:
    """B [m, r] with the rows of [I, C] in y's order; C [m - r, r], permutation [m]."""
    m, r = len(permutation), C.shape[1]
    B = C.new_zeros((m, r))
    B.view(-1).index_fill_(0, permutation[:r] * r + torch.arange(r, device=C.device), 1)
    return B.index_copy_(0, permutation[r:], C)


def pivoted_backward(
    grad: Tensor, x: Tensor, A: Tensor, C: Tensor, permutation: Tensor, needed: Sequence[bool]
) -> list[Tensor]:
    """Gradients of x [..., n], A [r, n] and C [m - r, r], those that are needed; grad [..., m]. Recomputes z = x Aᵀ."""
    return halves_backward(gather_columns(as_rows(grad), permutation), x, A, C, needed)


def halves_backward(grad: Tensor, x: Tensor, A: Tensor, C: Tensor, needed: Sequence[bool]) -> list[Tensor]:
    """Gradients of x [..., n], A and C, those that are needed, given that of `halves`, grad [T, m]."""
    tokens, r = as_rows(x), A.shape[0]
    direct, through = grad[:, :r], grad[:, r:]
    gradients = []
    if needed[0] or needed[1]:
        dz = torch.addmm(direct, through, C)
        gradients += [(dz @ A).view(x.shape)] if needed[0] else []
        gradients += [dz.T @ tokens] if needed[1] else []
    if needed[2]:
        gradients += [through.T @ (tokens @ A.T)]
    return gradients
