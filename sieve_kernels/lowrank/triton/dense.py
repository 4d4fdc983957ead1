"""`linear` on the GPU: one product, with split-K where few rows would leave multiprocessors idle."""

from collections.abc import Sequence

from torch import Tensor

from sieve_kernels.autotune.config import SPLITTABLE
from sieve_kernels.common.gemm import MATMUL, matmul, shape_of, split_k_reduce
from sieve_kernels.core.checks import as_rows


def linear(x: Tensor, W: Tensor, bias: Tensor | None) -> Tensor:
    """y [..., m] = x Wᵀ + bias; x [..., n], W [m, n], bias [m]. Two launches if the sums are split, else one."""
    rows, config = as_rows(x), MATMUL.choose(shape_of([as_rows(x)], [W], SPLITTABLE))
    if config.split_k > 1:
        y = split_k_reduce(matmul(rows, W, config=config), bias, x.dtype)
    else:
        y = matmul(rows, W, bias, config)
    return y.reshape(*x.shape[:-1], W.shape[0])


def linear_backward(grad: Tensor, x: Tensor, W: Tensor, needed: Sequence[bool]) -> list[Tensor]:
    """Gradients of x [..., n] and W [m, n], those that are needed; grad [..., m]."""
    rows = as_rows(grad)
    gradients = [matmul(rows, W.T).reshape(x.shape)] if needed[0] else []
    return gradients + ([matmul(rows.T, as_rows(x).T)] if needed[1] else [])
