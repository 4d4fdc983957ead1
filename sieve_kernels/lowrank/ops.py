"""`lowrank_linear`: checks, operator registration, gradients, and the function users call."""

import torch
import torch.nn.functional as F
from torch import Tensor

from sieve_kernels import checks
from sieve_kernels.lowrank import reference


def lowrank_linear(x: Tensor, A: Tensor, B: Tensor, bias: Tensor | None = None, rank: int | None = None) -> Tensor:
    """y = (x A[:r]ᵀ) B[:, :r]ᵀ + bias: a linear layer whose weight is the rank-r product B A.

    Differentiable in all four tensors; the r-wide intermediate is recomputed, not stored, and gradients are zero
    outside the slice. Under autocast it computes in autocast's dtype, as `F.linear` does.

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
    """
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        x, A, B, bias = x.to(dtype), A.to(dtype), B.to(dtype), None if bias is None else bias.to(dtype)
    _check(x, A, B, bias, rank)
    if rank is not None and rank != A.shape[0]:
        A, B = A[:rank], B[:, :rank]
    return torch.ops.sieve_kernels.lowrank_linear(x, A, B, bias)


def _check(x: Tensor, A: Tensor, B: Tensor, bias: Tensor | None, rank: int | None) -> None:
    checks.require_float(x=x)
    checks.require_same_dtype(x=x, A=A, B=B, bias=bias)
    checks.require_same_device(x=x, A=A, B=B, bias=bias)
    fits = A.dim() == 2 and B.dim() == 2 and x.dim() >= 1 and x.shape[-1] == A.shape[1] and A.shape[0] == B.shape[1]
    if not fits or (bias is not None and bias.shape != B.shape[:1]):
        shapes = {k: list(t.shape) for k, t in {"x": x, "A": A, "B": B, "bias": bias}.items() if t is not None}
        raise ValueError(f"need x [..., n], A [R, n], B [m, R] and bias [m], got {shapes}")
    if rank is not None and not 1 <= rank <= A.shape[0]:
        raise ValueError(f"rank must be between 1 and {A.shape[0]}, got {rank}")


@torch.library.custom_op(
    "sieve_kernels::lowrank_linear",
    mutates_args=(),
    device_types="cuda",
    schema="(Tensor x, Tensor A, Tensor B, Tensor? bias) -> Tensor",
)
def _linear(x, A, B, bias):
    return F.linear(F.linear(x, A), B, bias)


@torch.library.custom_op(
    "sieve_kernels::lowrank_linear_backward",
    mutates_args=(),
    device_types="cuda",
    schema="(Tensor grad, Tensor x, Tensor A, Tensor B, bool[] needed) -> (Tensor, Tensor, Tensor)",
)
def _linear_backward(grad, x, A, B, needed):
    flat_grad, flat_x = grad.reshape(-1, grad.shape[-1]), x.reshape(-1, x.shape[-1])
    dx, dA, dB = reference.linear_backward(flat_grad, flat_x, A, B)
    return dx.reshape(x.shape), dA, dB


_linear.register_kernel("cpu")(lambda x, A, B, bias: F.linear(F.linear(x, A), B, bias))
_linear_backward.register_kernel("cpu")(_linear_backward._init_fn)


@_linear.register_fake
def _(x, A, B, bias):
    return x.new_empty((*x.shape[:-1], B.shape[0]))


@_linear_backward.register_fake
def _(grad, x, A, B, needed):
    return torch.empty_like(x, memory_format=torch.contiguous_format), A.new_empty(A.shape), B.new_empty(B.shape)


def _save(ctx, inputs, output):
    x, A, B, _ = inputs
    ctx.save_for_backward(x, A, B)


def _gradients(ctx, grad):
    x, A, B = ctx.saved_tensors
    dx, dA, dB = torch.ops.sieve_kernels.lowrank_linear_backward(grad, x, A, B, list(ctx.needs_input_grad[:3]))
    db = grad.reshape(-1, grad.shape[-1]).sum(0) if ctx.needs_input_grad[3] else None
    return dx, dA, dB, db


_linear.register_autograd(_gradients, setup_context=_save)
