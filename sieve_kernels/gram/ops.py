"""`gram_` and `cross_gram_`: the functions users call, their checks, and the registration of the operators."""

import torch
from torch import Tensor

from sieve_kernels.core import dispatch
from sieve_kernels.core.checks import as_rows, describe, require_float, require_same_device, require_same_dtype
from sieve_kernels.core.op import register


def gram_(out: Tensor, x: Tensor, weight: Tensor | None = None) -> Tensor:
    """Accumulate a Gram matrix in place: out += Σ_t w_t x_t x_tᵀ = xᵀ diag(w) x. Returns `out`, symmetric.

    Only the upper triangle of `out` is read, so it must be symmetric (or zero) when the call begins. A token of weight
    zero is left out whatever it holds, NaN included: padding is often NaN. Not differentiable: x is detached.

    Args:
        out: accumulator [n, n], float32 or float64.
        x: tokens [..., n], float16, bfloat16, float32, or float64 with a float64 accumulator.
        weight: token weights [...] of x's leading shape: bool (a mask, the fastest), integer or float. None means 1.

    Raises:
        ValueError: shapes or devices do not fit, or `out` requires a gradient.
        TypeError: a dtype outside those above.

    Example:
        >>> out = torch.zeros(3, 3)
        >>> gram_(out, torch.ones(2, 5, 3), torch.ones(2, 5, dtype=torch.bool))
        tensor([[10., 10., 10.],
                [10., 10., 10.],
                [10., 10., 10.]])
    """
    _check(out, x, x, weight)
    _gram_op(out, as_rows(x.detach()), _weights(weight, out))
    return out


def cross_gram_(out: Tensor, x: Tensor, y: Tensor, weight: Tensor | None = None) -> Tensor:
    """Accumulate a cross-Gram matrix in place: out += Σ_t w_t x_t y_tᵀ = xᵀ diag(w) y. Returns `out`.

    As `gram_`, for two inputs of the same tokens.

    Args:
        out: accumulator [n, m], float32 or float64.
        x: tokens [..., n], dtypes as for `gram_`.
        y: tokens [..., m], of x's leading shape and dtype.
        weight: token weights [...] as for `gram_`.

    Raises:
        ValueError, TypeError: as `gram_`.

    Example:
        >>> cross_gram_(torch.zeros(2, 3), torch.ones(5, 2), torch.ones(5, 3))
        tensor([[5., 5., 5.],
                [5., 5., 5.]])
    """
    _check(out, x, y, weight)
    _cross_gram_op(out, as_rows(x.detach()), as_rows(y.detach()), _weights(weight, out))
    return out


def _weights(weight: Tensor | None, out: Tensor) -> Tensor | None:
    if weight is None:
        return None
    weight = weight.detach().reshape(-1)
    return weight if weight.dtype == torch.bool else weight.to(out.dtype)


def _check(out: Tensor, x: Tensor, y: Tensor, weight: Tensor | None) -> None:
    if x.dim() == 0 or y.dim() == 0 or x.shape[:-1] != y.shape[:-1]:
        raise ValueError(f"x {describe(x)} and y {describe(y)} must hold the same tokens")
    if out.shape != (x.shape[-1], y.shape[-1]):
        raise ValueError(f"out {describe(out)} must be {[x.shape[-1], y.shape[-1]]} for x {describe(x)}")
    if weight is not None and weight.shape != x.shape[:-1]:
        raise ValueError(f"weight {describe(weight)} must have the leading shape of x {describe(x)}")
    require_float("x", x)
    require_same_dtype("x", x, "y", y)
    require_same_device("x", x, "out", out)
    if weight is not None:
        require_same_device("x", x, "weight", weight)
        if weight.is_complex():
            raise TypeError(f"weight must be bool, integer or float, got {describe(weight)}")
    if out.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"out accumulates in float32 or float64, got {describe(out)}")
    if x.dtype == torch.float64 and out.dtype == torch.float32:
        raise TypeError(f"float64 tokens need a float64 accumulator, got out {describe(out)}")
    if out.requires_grad:
        raise ValueError(f"out {describe(out)} must not require a gradient: accumulation is not differentiable")


def _gram(out, x, weight):
    dispatch.implementation("gram_", x)(out, x, weight)


def _gram_fake(out, x, weight):
    return None


def _cross_gram(out, x, y, weight):
    dispatch.implementation("cross_gram_", x)(out, x, y, weight)


def _cross_gram_fake(out, x, y, weight):
    return None


_gram_op = register("gram_", "(Tensor(a!) out, Tensor x, Tensor? weight) -> ()", _gram, _gram_fake)
_cross_gram_op = register(
    "cross_gram_", "(Tensor(a!) out, Tensor x, Tensor y, Tensor? weight) -> ()", _cross_gram, _cross_gram_fake
)
