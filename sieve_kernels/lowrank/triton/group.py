"""`lowrank_linear_group` on the GPU: all intermediates in one launch, all outputs in another."""

from collections.abc import Sequence
from itertools import compress

from torch import Tensor

from sieve_kernels.common.gemm import grouped_gemm, matmul, split_gemm, summed_matmul
from sieve_kernels.core.checks import as_rows


def group(x: Tensor, As: Sequence[Tensor], Bs: Sequence[Tensor], biases: Sequence[Tensor] | None) -> list[Tensor]:
    """y_i [..., m_i] = (x A_iᵀ) B_iᵀ + bias_i in two launches; x [..., n], A_i [r_i, n], B_i [m_i, r_i], bias_i [m_i].

    A launch covers the tiles of all products, so that a panel of x is read once for all of them.
    """
    ys = grouped_gemm(intermediates(x, As), Bs, biases)
    return [y.reshape(*x.shape[:-1], y.shape[1]) for y in ys]


def intermediates(x: Tensor, As: Sequence[Tensor]) -> list[Tensor]:
    """z_i [T, r_i] = x A_iᵀ in one launch; for few rows in parts [split_k, T, r_i], for the next product to add."""
    return split_gemm(as_rows(x), As)


def group_backward(
    grads: Sequence[Tensor], x: Tensor, As: Sequence[Tensor], Bs: Sequence[Tensor], needed: Sequence[bool]
) -> list[Tensor]:
    """Gradients of x [..., n], the A_i [r_i, n] and the B_i [m_i, r_i], those that are needed; grads [..., m_i].

    Recomputes z_i = x A_iᵀ.
    """
    count, tokens, rows = len(As), as_rows(x), [as_rows(g) for g in grads]
    x_needed, As_needed, Bs_needed = needed[0], needed[1 : 1 + count], needed[1 + count :]
    gradients = []
    through = [x_needed or wanted for wanted in As_needed]
    if any(through):
        dzs = iter(grouped_gemm(list(compress(rows, through)), [B.T for B in compress(Bs, through)]))
        dzs = [next(dzs) if wanted else None for wanted in through]
        gradients += [summed_matmul(dzs, [A.T for A in As]).reshape(x.shape)] if x_needed else []
        gradients += [matmul(dz.T, tokens.T) for dz in compress(dzs, As_needed)]
    if any(Bs_needed):
        zs = grouped_gemm([tokens] * sum(Bs_needed), list(compress(As, Bs_needed)))
        gradients += [matmul(g.T, z.T) for g, z in zip(compress(rows, Bs_needed), zs, strict=True)]
    return gradients
