"""`linear` on the GPU: one product, whose sums are split into shares where few rows would leave processors idle."""

from collections.abc import Sequence

from torch import Tensor

from sieve_kernels.common.gemm import grouped_gemm, matmul, split_k_factor, split_k_reduce
from sieve_kernels.core.checks import as_rows


def linear(x: Tensor, W: Tensor, bias: Tensor | None) -> Tensor:
    """y [..., m] = x Wᵀ + bias; x [..., n], W [m, n], bias [m]. Two launches if the sums are split, else one."""
    rows, (m, n) = as_rows(x), W.shape
    shares = split_k_factor(rows.shape[0], (m,), n, x.dtype, x.device)
    if shares > 1:
        y = split_k_reduce(grouped_gemm([rows], [W], shares=shares)[0], bias, x.dtype)
    else:
        y = matmul(rows, W, bias)
    return y.reshape(*x.shape[:-1], m)


def linear_backward(grad: Tensor, x: Tensor, W: Tensor, needed: Sequence[bool]) -> list[Tensor]:
    """Gradients of x [..., n] and W [m, n], those that are needed; grad [..., m]."""
    rows = as_rows(grad)
    gradients = [matmul(rows, W.T).reshape(x.shape)] if needed[0] else []
    return gradients + ([matmul(rows.T, as_rows(x).T)] if needed[1] else [])
