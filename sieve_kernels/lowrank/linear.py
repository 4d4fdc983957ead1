"""`linear`: the function users call, its checks, and the registration of operator and gradients."""

import torch
import torch.nn.functional as F
from torch import Tensor

from sieve_kernels.core import dispatch
from sieve_kernels.core.checks import as_rows, autocast, autocasts, require_float, require_same_dtype
from sieve_kernels.core.dispatch import Implementation
from sieve_kernels.core.op import define_op, differentiable_gradients, gradients_fake
from sieve_kernels.lowrank import backends, cpp_backend, reference, torch_backend, training
from sieve_kernels.lowrank.checks import listing


def linear(x: Tensor, W: Tensor, bias: Tensor | None = None) -> Tensor:
    """y = x Wᵀ + bias, as `F.linear`: for matrices that stay dense, and made for few rows.

    Differentiable in all three tensors, twice if need be. Under autocast it computes in autocast's dtype.

    Args:
        x: inputs [..., n].
        W: weight [m, n].
        bias: [m] or None.

    Returns:
        y [..., m] in x's dtype (float16, bfloat16, float32 or float64, the same for all arguments).

    Raises:
        ValueError: shapes or devices do not fit.
        TypeError: dtypes differ or are not floats.

    Example:
        >>> linear(torch.randn(5, 64), torch.randn(32, 64)).shape
        torch.Size([5, 32])
    """
    if not torch.compiler.is_compiling():
        y = _linear.direct(x, W, bias)
        if y is not None:
            return y
    if autocasts(x):
        x, W, bias = (autocast(t) for t in (x, W, bias))
    _check(x, W, bias)
    if training.by_library(x, W, bias):
        return F.linear(x, W, bias)
    return _linear.op(x, W, bias)


def _check(x: Tensor, W: Tensor, bias: Tensor | None) -> None:
    fits = W.dim() == 2 and x.dim() >= 1 and x.shape[-1] == W.shape[1]
    if not fits or (bias is not None and bias.shape != W.shape[:1]):
        raise ValueError(f"need x [..., n], W [m, n] and bias [m], got {listing({'x': x, 'W': W, 'bias': bias})}")
    require_float("x", x)
    require_same_dtype("x", x, "W", W)
    if bias is not None:
        require_same_dtype("x", x, "bias", bias)


def _save(ctx, inputs, output):
    x, W, _ = inputs
    ctx.save_for_backward(x, W)


def _gradients(ctx, grad):
    tensors = ctx.saved_tensors
    *needed, bias_needed = ctx.needs_input_grad
    if torch.is_grad_enabled():  # a gradient of this gradient will be taken
        gradients = differentiable_gradients(reference.dense, tensors, needed, grad)
    else:
        found = iter(_linear_backward.op(grad, *tensors, needed))
        gradients = [next(found) if wanted else None for wanted in needed]
    return *gradients, as_rows(grad).sum(0) if bias_needed else None


_linear_backward = define_op(
    "linear_backward",
    "(Tensor grad, Tensor x, Tensor W, bool[] needed) -> Tensor[]",
    (
        Implementation("torch", lambda: torch_backend.dense_backward, "library products", dispatch.anywhere),
        Implementation(
            "triton", lambda: backends.triton().dense.linear_backward, "one launch per product", dispatch.on_triton
        ),
    ),
    fake=gradients_fake,
    first=1,
)
_linear = define_op(
    "linear",
    "(Tensor x, Tensor W, Tensor? bias) -> Tensor",
    (
        dispatch.cpp(lambda: cpp_backend.dense, most=64),
        Implementation("torch", lambda: torch_backend.dense, "library product", dispatch.anywhere, dispatch.by_library),
        dispatch.triton_gemv(lambda: backends.triton().gemv.dense),
        Implementation(
            "triton", lambda: backends.triton().dense.linear, "split-K where rows are few", dispatch.on_triton
        ),
    ),
    fake=lambda x, W, bias: x.new_empty((*x.shape[:-1], W.shape[0])),
    check=_check,
    backward=_gradients,
    save=_save,
)
