"""`lowrank_linear`: the function users call, its checks, and the registration of operator and gradients."""

import torch
from torch import Tensor

from sieve_kernels.core import dispatch
from sieve_kernels.core.checks import as_rows, autocast, autocasts
from sieve_kernels.core.dispatch import Implementation
from sieve_kernels.core.op import define_op, gradients_fake
from sieve_kernels.lowrank import backends, cpp_backend, reference, torch_backend, training
from sieve_kernels.lowrank.checks import check_factors


def lowrank_linear(x: Tensor, A: Tensor, B: Tensor, bias: Tensor | None = None, rank: int | None = None) -> Tensor:
    """y = (x A[:r]ᵀ) B[:, :r]ᵀ + bias: a linear layer whose weight is the rank-r product B A.

    Differentiable in all four tensors, twice if need be; the r-wide intermediate is recomputed, not stored (but kept
    for many rows on a GPU), and gradients are zero outside the slice. Under autocast it computes in autocast's dtype,
    as `F.linear` does.

    Args:
        x: inputs [..., n].
        A: first factor [R, n].
        B: second factor [m, R].
        bias: [m] or None.
        rank: r with 1 ≤ r ≤ R, the leading slice of nested factors, taken without a copy; None means R.

    Returns:
        y [..., m] in x's dtype (float16, bfloat16, float32 or float64, the same for all arguments).

    Raises:
        ValueError: shapes, devices or rank do not fit.
        TypeError: dtypes differ or are not floats.

    Example:
        >>> x, A, B = torch.randn(5, 64), torch.randn(16, 64), torch.randn(32, 16)
        >>> lowrank_linear(x, A, B, rank=8).shape
        torch.Size([5, 32])
    """
    if rank is None and not torch.compiler.is_compiling():
        y = _linear.direct(x, A, B, bias)
        if y is not None:
            return y
    if autocasts(x):
        x, A, B, bias = (autocast(t) for t in (x, A, B, bias))
    check_factors(x, A, B, bias)
    if rank is not None and rank != A.shape[0]:
        if not 1 <= rank <= A.shape[0]:
            raise ValueError(f"rank must be between 1 and {A.shape[0]}, got {rank}")
        A, B = A[:rank], B[:, :rank]
    if training.by_library(x, A, B, bias):
        return training.linear(x, A, B, bias)
    return _linear.op(x, A, B, bias)


def _save(ctx, inputs, output):
    x, A, B, _ = inputs
    ctx.save_for_backward(x, A, B)


def _gradients(ctx, grad):
    x, A, B = ctx.saved_tensors
    *needed, bias_needed = ctx.needs_input_grad
    if torch.is_grad_enabled():  # a gradient of this gradient will be taken
        gradients = reference.linear_backward(grad, x, A, B)
    else:
        found = iter(_linear_backward.op(grad, x, A, B, needed))
        gradients = [next(found) if wanted else None for wanted in needed]
    return *gradients, as_rows(grad).sum(0) if bias_needed else None


_linear_backward = define_op(
    "lowrank_linear_backward",
    "(Tensor grad, Tensor x, Tensor A, Tensor B, bool[] needed) -> Tensor[]",
    (
        Implementation("torch", lambda: torch_backend.linear_backward, "library products", dispatch.anywhere),
        Implementation(
            "triton", lambda: backends.triton().linear.linear_backward, "one launch per product", dispatch.on_triton
        ),
    ),
    fake=gradients_fake,
    rank=lambda grad, x, A, B, needed: A.shape[0],
    first=1,
)
_linear = define_op(
    "lowrank_linear",
    "(Tensor x, Tensor A, Tensor B, Tensor? bias) -> Tensor",
    (
        dispatch.cpp(lambda: cpp_backend.linear),
        Implementation(
            "triton_grouped",
            lambda: backends.triton().grouped.pair,
            "tiles of few rows, sums split to fill the GPU",
            dispatch.half_tile,
            dispatch.never,
        ),
        Implementation(
            "torch", lambda: torch_backend.linear, "two library products", dispatch.anywhere, dispatch.by_library
        ),
        dispatch.triton_gemv(lambda: backends.triton().gemv.linear),
        Implementation(
            "triton", lambda: backends.triton().linear.linear, "two launches inside one operator", dispatch.on_triton
        ),
        Implementation(
            "triton_fused",
            lambda: backends.triton().linear.linear_fused,
            "the r-wide intermediate stays on chip",
            dispatch.fits_on_chip,
            dispatch.never,
        ),
    ),
    fake=lambda x, A, B, bias: x.new_empty((*x.shape[:-1], B.shape[0])),
    rank=lambda x, A, B, bias: A.shape[0],
    check=check_factors,
    backward=_gradients,
    save=_save,
)
