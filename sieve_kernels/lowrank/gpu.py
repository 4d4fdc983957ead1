"""GPU path of the low-rank family for many rows: the library's products, at their best there, and few copies.

What needs no other order of things than on a CPU is the CPU's (`cpu.py`). Blocks of tokens, which keep intermediates
in a CPU's cache, would only cost launches here.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from sieve_kernels.arguments import as_rows
from sieve_kernels.core.plans import Plans
from sieve_kernels.core.streams import side_by_side
from sieve_kernels.lowrank.cpu import linear, product
from sieve_kernels.lowrank.permutation import inverse
from sieve_kernels.pointwise.columns import gather_columns


def _prepare_group(
    x: Tensor,
    As: Sequence[Tensor],
    Bs: Sequence[Tensor],
    biases: Sequence[Tensor] | None,
    permutations: Sequence[Tensor] | None = None,
) -> Callable[..., list[Tensor]]:
    """A function of the same arguments: layers that share a GPU, each as `layer_` computes it.

    Stacked factors would be fewer products, but a second copy of the weights.
    """
    none = (None,) * len(As)
    rows, device = x.numel() // max(1, x.shape[-1]), x.device
    widths = [B.shape[0] if permutations is None else A.shape[0] + B.shape[0] for A, B in zip(As, Bs, strict=True)]
    shapes = [(*x.shape[:-1], width) for width in widths]

    def run(x, As, Bs, biases, permutations=None):
        tokens = as_rows(x)
        ys = [outputs(tokens, width) for width in widths]
        if permutations is None:
            layers = zip(ys, As, Bs, biases or none, strict=True)
            side_by_side([partial(pair_, y, tokens, A, B, bias) for y, A, B, bias in layers], rows, device)
        else:
            side_by_side([partial(halves_, y, tokens, A, C) for y, A, C in zip(ys, As, Bs, strict=True)], rows, device)
            layers = zip(ys, permutations, biases or none, strict=True)
            ys = [gather_columns(y, inverse(permutation), bias) for y, permutation, bias in layers]
        return [y.view(shape) for y, shape in zip(ys, shapes, strict=True)]

    return run


group = Plans(_prepare_group)
"""y_i [..., m_i] of several layers of x [..., n]: pairs (A_i [r_i, n], B_i [m_i, r_i], bias_i [m_i] or None), or with
permutations_i [m_i] pivoted pairs, whose B_i is C_i [m_i - r_i, r_i]."""


def outputs(x: Tensor, width: int) -> Tensor:
    """[T, width], to be written; x [T, n]."""
    # A CPU's library reads a number beyond rows of odd length in 16 bits, to multiply it by zero: it must not be NaN.
    return (x.new_empty if x.is_cuda else x.new_zeros)((x.shape[0], width))


def pair_(out: Tensor, x: Tensor, A: Tensor, B: Tensor, bias: Tensor | None = None) -> None:
    """out [T, m] = (x Aᵀ) Bᵀ + bias; x [T, n], A [r, n], B [m, r], bias [m]."""
    product(torch.mm(x, A.T), B, bias, out)


def halves_(out: Tensor, x: Tensor, A: Tensor, C: Tensor) -> None:
    """out [T, m] = [z, z Cᵀ], z = x Aᵀ, each half written where it belongs; x [T, n], A [r, n], C [m - r, r]."""
    r = A.shape[0]
    torch.mm(x, A.T, out=out[:, :r])
    torch.mm(out[:, :r], C.T, out=out[:, r:])


def pivoted(x: Tensor, A: Tensor, C: Tensor, permutation: Tensor, bias: Tensor | None) -> Tensor:
    """y [..., m], y[..., permutation] = [z, z Cᵀ] + bias[permutation], z = x Aᵀ.

    x [..., n], A [r, n], C [m - r, r], permutation [m] int64, bias [m].
    """
    rows, m = as_rows(x), len(permutation)
    both = outputs(rows, m)
    halves_(both, rows, A, C)
    return gather_columns(both, inverse(permutation), bias).view(*x.shape[:-1], m)


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
    """Gradients of x [..., n], A and C, those that are needed, given that of `halves_`, grad [T, m]."""
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
