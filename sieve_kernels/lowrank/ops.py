"""`lowrank_linear`: the function users call, its checks, and the registration of operator and gradients."""

import torch
from torch import Tensor

from sieve_kernels import checks, dispatch
from sieve_kernels.lowrank import reference


def lowrank_linear(x: Tensor, A: Tensor, B: Tensor, bias: Tensor | None = None, rank: int | None = None) -> Tensor:
    """y = (x A[:r]ᵀ) B[:, :r]ᵀ + bias: a linear layer whose weight is the rank-r product B A.

    Differentiable in all four tensors, twice if need be; the r-wide intermediate is recomputed, not stored, and
    gradients are zero outside the slice. Under autocast it computes in autocast's dtype, as `F.linear` does.

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
    if torch.is_autocast_enabled(x.device.type):
        x, A, B, bias = (_autocast(t) for t in (x, A, B, bias))
    _check(x, A, B, bias)
    if rank is not None and rank != A.shape[0]:
        if not 1 <= rank <= A.shape[0]:
            raise ValueError(f"rank must be between 1 and {A.shape[0]}, got {rank}")
        A, B = A[:rank], B[:, :rank]
    return torch.ops.sieve_kernels.lowrank_linear(x, A, B, bias)


def _autocast(t: Tensor | None) -> Tensor | None:
    """Autocast leaves float64 alone, and so do we."""
    if t is None or t.dtype == torch.float64 or not t.is_floating_point():
        return t
    return t.to(torch.get_autocast_dtype(t.device.type))


def _check(x: Tensor, A: Tensor, B: Tensor, bias: Tensor | None) -> None:
    fits = A.dim() == 2 and B.dim() == 2 and x.dim() >= 1 and x.shape[-1] == A.shape[1] and A.shape[0] == B.shape[1]
    if not fits or A.shape[0] == 0 or (bias is not None and bias.shape != B.shape[:1]):
        shapes = checks.describe(x=x, A=A, B=B, bias=bias)
        raise ValueError(f"need x [..., n], A [R, n], B [m, R] and bias [m] with R ≥ 1, got {shapes}")
    checks.require_float(x=x)
    checks.require_same_dtype(x=x, A=A, B=B, bias=bias)
    checks.require_same_device(x=x, A=A, B=B, bias=bias)


@torch.library.custom_op(
    "sieve_kernels::lowrank_linear",
    mutates_args=(),
    device_types=("cpu", "cuda"),
    schema="(Tensor x, Tensor A, Tensor B, Tensor? bias) -> Tensor",
)
def _linear(x, A, B, bias):
    return dispatch.implementation("lowrank_linear", x, A.shape[0])(x, A, B, bias)


@torch.library.custom_op(
    "sieve_kernels::lowrank_linear_backward",
    mutates_args=(),
    device_types=("cpu", "cuda"),
    schema="(Tensor grad, Tensor x, Tensor A, Tensor B, bool[] needed) -> Tensor[]",
)
def _linear_backward(grad, x, A, B, needed):
    return dispatch.implementation("lowrank_linear_backward", x, A.shape[0])(grad, x, A, B, needed)


@_linear.register_fake
def _(x, A, B, bias):
    return x.new_empty((*x.shape[:-1], B.shape[0]))


@_linear_backward.register_fake
def _(grad, x, A, B, needed):
    return [t.new_empty(t.shape) for t, wanted in zip((x, A, B), needed, strict=True) if wanted]


def _save(ctx, inputs, output):
    x, A, B, _ = inputs
    ctx.save_for_backward(x, A, B)


def _gradients(ctx, grad):
    x, A, B = ctx.saved_tensors
    *needed, bias_needed = ctx.needs_input_grad
    if torch.is_grad_enabled():  # a gradient of this gradient will be taken
        gradients = reference.linear_backward(grad, x, A, B)
    else:
        found = iter(torch.ops.sieve_kernels.lowrank_linear_backward(grad, x, A, B, needed))
        gradients = [next(found) if wanted else None for wanted in needed]
    return *gradients, grad.reshape(-1, grad.shape[-1]).sum(0) if bias_needed else None


_linear.register_autograd(_gradients, setup_context=_save)
