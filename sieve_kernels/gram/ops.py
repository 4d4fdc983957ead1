"""`gram_` and `cross_gram_`: checks, operator registration, and the functions users call."""

import torch
from torch import Tensor

from sieve_kernels import checks, dispatch


def gram_(out: Tensor, x: Tensor, weight: Tensor | None = None) -> Tensor:
    """Accumulate a Gram matrix in place: out += Σ_t w_t x_t x_tᵀ = xᵀ diag(w) x. Returns `out`, symmetric.

    Only the upper triangle of `out` is read, so it must be symmetric (or zero) when the call begins. A token of weight
    zero is left out whatever it holds, NaN included: pass the attention mask of a padded batch as it is. Not
    differentiable.

    Args:
        out: accumulator [n, n], float32 or float64.
        x: tokens [..., n], float16, bfloat16, float32, or float64 with a float64 accumulator.
        weight: token weights [...] of x's leading shape, bool, integer or float; None means 1.

    Raises:
        ValueError: shapes or devices do not fit, or `out` requires a gradient.
        TypeError: a dtype outside those above.
    """
    return _accumulate(torch.ops.sieve_kernels.gram_, out, x, None, weight)


def cross_gram_(out: Tensor, x: Tensor, y: Tensor, weight: Tensor | None = None) -> Tensor:
    """Accumulate a cross-Gram matrix in place: out += Σ_t w_t x_t y_tᵀ = xᵀ diag(w) y. Returns `out`.

    As `gram_`, for two inputs of the same tokens.

    Args:
        out: accumulator [n, m], float32 or float64.
        x: tokens [..., n].
        y: tokens [..., m], leading shape and dtype of x.
        weight: token weights [...]; None means 1.

    Raises:
        ValueError, TypeError: as `gram_`.
    """
    return _accumulate(torch.ops.sieve_kernels.cross_gram_, out, x, y, weight)


def _accumulate(op, out: Tensor, x: Tensor, y: Tensor | None, weight: Tensor | None) -> Tensor:
    _check(out, x, y, weight)
    inputs = [t.detach().reshape(-1, t.shape[-1]) for t in (x, y) if t is not None]
    if weight is not None:
        weight = weight.detach().reshape(-1)
        weight = weight if weight.dtype == torch.bool else weight.to(out.dtype)
    op(out, *inputs, weight)
    return out


def _check(out: Tensor, x: Tensor, y: Tensor | None, weight: Tensor | None) -> None:
    checks.require_float(x=x, y=y)
    checks.require_same_device(out=out, x=x, y=y, weight=weight)
    if out.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"out accumulates in float32 or float64, got {out.dtype}")
    if x.dtype == torch.float64 and out.dtype != torch.float64:
        raise TypeError("float64 tokens need a float64 accumulator: pass out as float64")
    if y is not None and (y.dtype != x.dtype or y.shape[:-1] != x.shape[:-1]):
        raise ValueError(f"x {_text(x)} and y {_text(y)} must hold the same tokens in the same dtype")
    n, m = x.shape[-1], (x if y is None else y).shape[-1]
    if out.shape != (n, m):
        raise ValueError(f"out {_text(out)} must be [{n}, {m}] for tokens {_text(x)}")
    if weight is not None and weight.shape != x.shape[:-1]:
        raise ValueError(f"weight {_text(weight)} must have the leading shape of tokens {_text(x)}")
    if out.requires_grad:
        raise ValueError("out must not require a gradient: Gram accumulation is not differentiable")


def _text(t: Tensor) -> str:
    return f"{list(t.shape)} {str(t.dtype).removeprefix('torch.')}"


@torch.library.custom_op(
    "sieve_kernels::gram_",
    mutates_args=("out",),
    device_types=("cpu", "cuda"),
    schema="(Tensor(a!) out, Tensor x, Tensor? weight) -> ()",
)
def _gram(out, x, weight):
    dispatch.implementation("gram_", x)(out, x, weight)


@torch.library.custom_op(
    "sieve_kernels::cross_gram_",
    mutates_args=("out",),
    device_types=("cpu", "cuda"),
    schema="(Tensor(a!) out, Tensor x, Tensor y, Tensor? weight) -> ()",
)
def _cross_gram(out, x, y, weight):
    dispatch.implementation("cross_gram_", x)(out, x, y, weight)


@_gram.register_fake
def _(out, x, weight):
    return None


@_cross_gram.register_fake
def _(out, x, y, weight):
    return None
