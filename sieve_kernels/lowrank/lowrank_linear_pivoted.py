"""`lowrank_linear_pivoted`: the function users call, its checks, and the registration of operator and gradients."""

import torch
from torch import Tensor

from sieve_kernels.core import dispatch
from sieve_kernels.core.checks import (
    as_rows,
    autocast,
    autocasts,
    describe,
    require_float,
    require_same_device,
    require_same_dtype,
)
from sieve_kernels.core.dispatch import Implementation
from sieve_kernels.core.op import define_op, gradients_fake
from sieve_kernels.lowrank import backends, cpp_backend, reference, torch_backend, training
from sieve_kernels.lowrank.checks import check_permutation


def lowrank_linear_pivoted(x: Tensor, A: Tensor, C: Tensor, permutation: Tensor, bias: Tensor | None = None) -> Tensor:
    """z = x Aᵀ, y[..., permutation] = [z, z Cᵀ], plus bias: a rank-r layer of which r outputs are z itself.

    Every pair (A, B) can be re-based to this form, in r² fewer elements. Differentiable in x, A, C and bias, twice if
    need be; z is recomputed, not stored (but kept for many rows on a GPU). Under autocast it computes in autocast's
    dtype, as `F.linear` does.

    Args:
        x: inputs [..., n].
        A: first factor [r, n], r ≥ 1.
        C: second factor without the identity's rows [m - r, r]; m = r is allowed, C then has no rows.
        permutation: [m] int64, a permutation of 0 … m - 1: where each of [z, z Cᵀ] goes. On CPU anything else is
            refused; on a GPU, where a check would make the host wait, results are undefined, but nothing is written
            outside of y. Writes are cheapest if both halves ascend.
        bias: [m] or None, in the order of y.

    Returns:
        y [..., m] in x's dtype (float16, bfloat16, float32 or float64, the same for all arguments but permutation).

    Raises:
        ValueError: shapes or devices do not fit, or (on CPU) the permutation is none.
        TypeError: dtypes differ or are not floats, or the permutation is not int64.

    Example:
        >>> x, A, C = torch.randn(5, 64), torch.randn(16, 64), torch.randn(32 - 16, 16)
        >>> lowrank_linear_pivoted(x, A, C, torch.randperm(32)).shape
        torch.Size([5, 32])
    """
    if not torch.compiler.is_compiling():
        y = _pivoted.direct(x, A, C, permutation, bias)
        if y is not None:
            return y
    if autocasts(x):
        x, A, C, bias = (autocast(t) for t in (x, A, C, bias))
    check_pivoted(x, A, C, permutation, bias)
    if training.by_library(x, A, C, bias):
        return training.pivoted(x, A, C, permutation, bias)
    return _pivoted.op(x, A, C, permutation, bias)


def check_pivoted(x: Tensor, A: Tensor, C: Tensor, permutation: Tensor, bias: Tensor | None) -> None:
    """ValueError or TypeError unless the arguments fit, whatever the permutation's entries are."""
    fits = A.dim() == 2 and C.dim() == 2 and x.dim() >= 1 and x.shape[-1] == A.shape[1] and A.shape[0] == C.shape[1]
    m = (A.shape[0] + C.shape[0],) if fits else ()
    if not fits or A.shape[0] == 0 or permutation.shape != m or (bias is not None and bias.shape != m):
        shapes = {"x": x, "A": A, "C": C, "permutation": permutation, "bias": bias}
        given = ", ".join(f"{name} {describe(t)}" for name, t in shapes.items() if t is not None)
        raise ValueError(f"need x [..., n], A [r, n], C [m - r, r], permutation [m], bias [m] with r ≥ 1, got {given}")
    require_float("x", x)
    require_same_dtype("x", x, "A", A)
    require_same_dtype("x", x, "C", C)
    if permutation.dtype != torch.int64:
        raise TypeError(f"permutation must be int64, got {describe(permutation)}")
    require_same_device("x", x, "permutation", permutation)
    if bias is not None:
        require_same_dtype("x", x, "bias", bias)


def _save(ctx, inputs, output):
    x, A, C, permutation, _ = inputs
    ctx.save_for_backward(x, A, C, permutation)


def _gradients(ctx, grad):
    x, A, C, permutation = ctx.saved_tensors
    *needed, _, bias_needed = ctx.needs_input_grad
    if torch.is_grad_enabled():  # a gradient of this gradient will be taken
        gradients = reference.pivoted_backward(grad, x, A, C, permutation)
    else:
        found = iter(_pivoted_backward.op(grad, x, A, C, permutation, needed))
        gradients = [next(found) if wanted else None for wanted in needed]
    return *gradients, None, as_rows(grad).sum(0) if bias_needed else None


_pivoted_backward = define_op(
    "lowrank_linear_pivoted_backward",
    "(Tensor grad, Tensor x, Tensor A, Tensor C, Tensor permutation, bool[] needed) -> Tensor[]",
    (
        Implementation("torch", lambda: torch_backend.pivoted_backward, "library products", dispatch.on_cpu),
        Implementation(
            "torch", lambda: backends.torch_gpu().pivoted_backward, "library products after one gather", dispatch.on_gpu
        ),
        Implementation(
            "triton", lambda: backends.triton().pivoted.pivoted_backward, "one launch per product", dispatch.on_triton
        ),
    ),
    fake=gradients_fake,
    rank=lambda grad, x, A, *_: A.shape[0],
    look=lambda grad, x, A, C, permutation, needed: check_permutation(permutation),
    first=1,
)
_pivoted = define_op(
    "lowrank_linear_pivoted",
    "(Tensor x, Tensor A, Tensor C, Tensor permutation, Tensor? bias) -> Tensor",
    (
        dispatch.cpp(lambda: cpp_backend.pivoted),
        Implementation("torch", lambda: torch_backend.pivoted, "library products", dispatch.on_cpu),
        Implementation(
            "torch",
            lambda: backends.torch_gpu().pivoted,
            "library products, and one pass that puts columns in order or makes the second factor whole",
            dispatch.on_gpu,
            dispatch.by_library,
        ),
        dispatch.triton_gemv(lambda: backends.triton().gemv.pivoted),
        Implementation(
            "triton",
            lambda: backends.triton().pivoted.pivoted,
            "two launches that write where y is",
            dispatch.on_triton,
        ),
        Implementation(
            "torch_expanded",
            lambda: backends.torch_gpu().pivoted_expanded,
            "library products with the identity's rows among the others",
            dispatch.anywhere,
            dispatch.never,
        ),
    ),
    fake=lambda x, A, C, permutation, bias: x.new_empty((*x.shape[:-1], permutation.shape[0])),
    rank=lambda x, A, *_: A.shape[0],
    look=lambda x, A, C, permutation, bias: check_permutation(permutation),
    check=check_pivoted,
    backward=_gradients,
    save=_save,
)
