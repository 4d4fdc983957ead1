"""`lowrank_linear_quantized`: the function users call, its checks, and the registration of the operator."""

import torch
from torch import Tensor

from sieve_kernels.core import dispatch
from sieve_kernels.core.checks import (
    as_rows,
    autocast,
    autocasts,
    require_float,
    require_same_device,
    require_same_dtype,
)
from sieve_kernels.core.dispatch import Implementation
from sieve_kernels.core.op import define_op
from sieve_kernels.lowrank import backends, cpp_backend, torch_backend
from sieve_kernels.lowrank.checks import listing
from sieve_kernels.lowrank.quantize import GROUP, dequantize_rows


def lowrank_linear_quantized(
    x: Tensor, A_q: Tensor, A_scale: Tensor, B_q: Tensor, B_scale: Tensor, bias: Tensor | None = None
) -> Tensor:
    """y = (x Aᵀ) Bᵀ + bias with factors in 8 or 4 bits, as `quantize_rows` makes them; each factor may have its own.

    For inference: factors have no gradient. Gradients do flow to x and bias, so that layers before this one can be
    trained. Under autocast it computes in autocast's dtype.

    Args:
        x: inputs [..., n].
        A_q, A_scale: first factor, of A [R, n]. int8 [R, n] with float scales [R], or two 4-bit integers to a byte,
            the even column in the low bits: uint8 [R, ⌈n/2⌉] with scales [R, ⌈n/64⌉].
        B_q, B_scale: second factor, of B [m, R], likewise.
        bias: [m] or None, in x's dtype.

    Returns:
        y [..., m] in x's dtype: float16, bfloat16, float32 or float64.

    Raises:
        ValueError: shapes or devices do not fit, or a scale requires a gradient.
        TypeError: a dtype outside those above.

    Example:
        >>> x, A, B = torch.randn(5, 64), torch.randn(16, 64), torch.randn(32, 16)
        >>> lowrank_linear_quantized(x, *quantize_rows(A, 8), *quantize_rows(B, 4)).shape
        torch.Size([5, 32])
    """
    if not torch.compiler.is_compiling():
        y = _quantized.direct(x, A_q, A_scale, B_q, B_scale, bias)
        if y is not None:
            return y
    if autocasts(x):
        x, bias = autocast(x), autocast(bias)
    _check(x, A_q, A_scale, B_q, B_scale, bias)
    return _quantized.op(x, A_q, A_scale, B_q, B_scale, bias)


def _check(x, A_q, A_scale, B_q, B_scale, bias):
    for name, q in (("A_q", A_q), ("B_q", B_q)):
        if q.dtype not in (torch.int8, torch.uint8):
            raise TypeError(f"{name} must be int8, or uint8 for 4 bits, got {listing({name: q})}")
    fits = A_q.dim() == 2 and B_q.dim() == 2 and x.dim() >= 1 and A_q.shape[0] > 0
    fits = fits and _held(A_q, A_scale, x.shape[-1]) and _held(B_q, B_scale, A_q.shape[0])
    if not fits or (bias is not None and bias.shape != B_q.shape[:1]):
        given = {"x": x, "A_q": A_q, "A_scale": A_scale, "B_q": B_q, "B_scale": B_scale, "bias": bias}
        raise ValueError(
            "need x [..., n], A of [R, n], B of [m, R] and bias [m] with R ≥ 1, where a factor [rows, columns] is int8 "
            "[rows, columns] with scales [rows], or uint8 [rows, ⌈columns / 2⌉] with scales [rows, ⌈columns / 64⌉], "
            f"got {listing(given)}"
        )
    require_float("x", x)
    for name, t in (("A_q", A_q), ("A_scale", A_scale), ("B_q", B_q), ("B_scale", B_scale)):
        require_same_device("x", x, name, t)
    for name, scale in (("A_scale", A_scale), ("B_scale", B_scale)):
        require_float(name, scale)
        if scale.requires_grad:
            raise ValueError(f"{name} must not require a gradient, got {listing({name: scale})}: inference only")
    if bias is not None:
        require_same_dtype("x", x, "bias", bias)


def _held(q: Tensor, scale: Tensor, columns: int) -> bool:
    """Whether integers and scales have the shapes of a factor with so many columns."""
    rows = q.shape[0]
    if q.dtype == torch.int8:
        return q.shape[1] == columns and scale.shape == (rows,)
    return q.shape[1] == (columns + 1) // 2 and scale.shape == (rows, (columns + GROUP - 1) // GROUP)


def _save(ctx, inputs, output):
    x, *factors, _ = inputs
    ctx.columns = x.shape[-1]
    ctx.save_for_backward(*factors)


def _gradients(ctx, grad):
    A_q, A_scale, B_q, B_scale = ctx.saved_tensors
    dx = None
    if ctx.needs_input_grad[0]:
        dz = grad @ dequantize_rows(B_q, B_scale, A_q.shape[0], grad.dtype)
        dx = dz @ dequantize_rows(A_q, A_scale, ctx.columns, grad.dtype)
    return dx, None, None, None, None, as_rows(grad).sum(0) if ctx.needs_input_grad[5] else None


_quantized = define_op(
    "lowrank_linear_quantized",
    "(Tensor x, Tensor A_q, Tensor A_scale, Tensor B_q, Tensor B_scale, Tensor? bias) -> Tensor",
    (
        dispatch.cpp(lambda: cpp_backend.quantized, most=dispatch.GEMV_ROWS),
        Implementation(
            "torch",
            lambda: torch_backend.quantized,
            "library products, one factor at a time as floats",
            dispatch.anywhere,
            lambda call: (
                dispatch.on_cpu(call) or call.rows > dispatch.GEMV_ROWS_GPU or (not dispatch.on_triton_integers(call))
            ),
        ),
        dispatch.triton_gemv(lambda: backends.triton().gemv_quantized.quantized),
        Implementation(
            "triton",
            lambda: backends.triton().quantized.quantized,
            "dequantised in registers",
            dispatch.on_triton_integers,
        ),
    ),
    fake=lambda x, A_q, A_scale, B_q, B_scale, bias: x.new_empty((*x.shape[:-1], B_q.shape[0])),
    rank=lambda x, A_q, *_: A_q.shape[0],
    check=_check,
    backward=_gradients,
    save=_save,
)
