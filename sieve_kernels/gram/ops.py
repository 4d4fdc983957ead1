"""`gram_` and `cross_gram_`: the functions users call, their checks, and the registration of the operators."""

from collections.abc import Callable
from types import ModuleType

import torch
from torch import Tensor

from sieve_kernels.core import dispatch
from sieve_kernels.core.checks import as_rows, describe, require_float, require_same_device, require_same_dtype
from sieve_kernels.core.dispatch import Implementation
from sieve_kernels.core.op import define_op
from sieve_kernels.gram import cpp_backend, torch_backend


def gram_(out: Tensor, x: Tensor, weight: Tensor | None = None) -> Tensor:
    """Accumulate a Gram matrix in place: out += Σ_t w_t x_t x_tᵀ = xᵀ diag(w) x. Returns `out`, symmetric.

    Only the upper triangle of `out` is read, so it must be symmetric (or zero) when the call begins. A token of weight
    zero is skipped even if it holds NaN, as padding often does. Not differentiable: x is detached.

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
    _gram.op(out, as_rows(x.detach()), _weights(weight, out))
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
    _cross_gram.op(out, as_rows(x.detach()), as_rows(y.detach()), _weights(weight, out))
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


def _triton() -> ModuleType:
    from sieve_kernels.gram import triton_backend

    return triton_backend


def _run(name: str) -> Callable[..., None]:
    """The operator's function. It writes to the first argument; the second, the tokens, decides the implementation."""

    def run(out, x, *others):
        dispatch.implementation(name, x)(out, x, *others)

    return run


_gram = define_op(
    "gram_",
    "(Tensor(a!) out, Tensor x, Tensor? weight) -> ()",
    (
        Implementation(
            "cpp",
            lambda: cpp_backend.gram_,
            "compiled kernel: tiles on and above the diagonal",
            dispatch.on_avx512,
            dispatch.on_cpu,
        ),
        Implementation(
            "torch",
            lambda: torch_backend.gram_,
            "library products of the panels that are needed",
            dispatch.anywhere,
            dispatch.on_cpu,
        ),
        Implementation(
            "triton", lambda: _triton().gram_, "tiles that are needed, tokens split to fill the GPU", dispatch.on_triton
        ),
    ),
    fake=lambda out, x, weight: None,
    run=_run("gram_"),
)
_cross_gram = define_op(
    "cross_gram_",
    "(Tensor(a!) out, Tensor x, Tensor y, Tensor? weight) -> ()",
    (
        Implementation(
            "cpp", lambda: cpp_backend.cross_gram_, "compiled kernel on AMX tiles", dispatch.on_amx, dispatch.on_cpu
        ),
        Implementation(
            "torch",
            lambda: torch_backend.cross_gram_,
            "library products of the panels that are needed",
            dispatch.anywhere,
            dispatch.on_cpu,
        ),
        Implementation(
            "triton",
            lambda: _triton().cross_gram_,
            "tiles that are needed, tokens split to fill the GPU",
            dispatch.on_triton,
        ),
    ),
    fake=lambda out, x, y, weight: None,
    run=_run("cross_gram_"),
)
