"""Pointwise operators: the functions users call, their checks, and the registration of operators and gradients."""

import torch
from torch import Tensor

from sieve_kernels.core import dispatch
from sieve_kernels.core.checks import describe, require_float, require_same_device, require_same_dtype
from sieve_kernels.core.op import define_op, differentiable_gradients
from sieve_kernels.core.plans import direct
from sieve_kernels.pointwise import backends, cpp_backend, joints, reference


def rms_norm(x: Tensor, weight: Tensor, epsilon: float = 1e-6) -> Tensor:
    """y = weight · x / √(mean x² + ε) over the last dimension (arXiv 1910.07467), rounded as transformers rounds it.

    Differentiable in x and weight, twice if need be, by torch's own operators.

    Args:
        x: inputs [..., n].
        weight: [n].
        epsilon: prevents division by zero for a row of zeros.

    Returns:
        y [..., n] in x's dtype (float16, bfloat16, float32 or float64, the same for both).

    Raises:
        ValueError: shapes or devices do not fit.
        TypeError: dtypes differ or are not floats.

    Example:
        >>> rms_norm(torch.randn(5, 64), torch.ones(64)).shape
        torch.Size([5, 64])
    """
    if not torch.compiler.is_compiling():
        y = _rms_norm.direct(x, weight, epsilon)
        if y is not None:
            return y
    _check_rms_norm(x, weight)
    return _rms_norm.op(x, weight, epsilon)


def _check_rms_norm(x, weight, epsilon=None):
    if x.dim() == 0 or weight.shape != x.shape[-1:]:
        raise ValueError(f"need x [..., n] and weight [n], got x {describe(x)}, weight {describe(weight)}")
    require_float("x", x)
    require_same_dtype("x", x, "weight", weight)


def rotary(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Rotary positions (arXiv 2104.09864) on queries and keys, element i of a head paired with element i + d/2.

    Differentiable in all four tensors, twice if need be, by torch's own operators.

    Args:
        q: queries [b, h, t, d], d even.
        k: keys [b, g, t, d].
        cos, sin: of the angles, [b, t, d], or [1, t, d] for all of a batch.

    Returns:
        q and k rotated, with the shapes, strides and dtype (float16, bfloat16, float32 or float64) that they came with.

    Raises:
        ValueError: shapes or devices do not fit.
        TypeError: dtypes differ or are not floats.

    Example:
        >>> q, k, angles = torch.randn(2, 4, 7, 8), torch.randn(2, 1, 7, 8), torch.rand(1, 7, 8)
        >>> rotary(q, k, angles.cos(), angles.sin())[1].shape
        torch.Size([2, 1, 7, 8])
    """
    if not torch.compiler.is_compiling():
        rotated = _rotary.direct(q, k, cos, sin)
        if rotated is not None:
            return rotated
    _check_rotary(q, k, cos, sin)
    return _rotary.op(q, k, cos, sin)


def _check_rotary(q, k, cos, sin):
    fits = q.dim() == k.dim() == 4 and q.shape[3] % 2 == 0 and (q.shape[0], *q.shape[2:]) == (k.shape[0], *k.shape[2:])
    if not fits or cos.shape != sin.shape or cos.shape not in (q.shape[:1] + q.shape[2:], (1, *q.shape[2:])):
        given = ", ".join(f"{name} {describe(x)}" for name, x in {"q": q, "k": k, "cos": cos, "sin": sin}.items())
        raise ValueError(
            f"need q [b, h, t, d], k [b, g, t, d], cos and sin [b, t, d] or [1, t, d] with d even, got {given}"
        )
    require_float("q", q)
    for name, x in (("k", k), ("cos", cos), ("sin", sin)):
        require_same_dtype("q", q, name, x)


def act_mul(gate: Tensor, up: Tensor, activation: str = "silu") -> Tensor:
    """act(gate) · up, for the outputs of a gated MLP's first two layers.

    Differentiable in both, twice if need be, by torch's own operators.

    Args:
        gate, up: [..., m]; the halves of one tensor will do.
        activation: "silu", "gelu", "gelu_tanh" (the tanh approximation) or "relu".

    Returns:
        [..., m] in the dtype of both (float16, bfloat16, float32 or float64).

    Raises:
        ValueError: shapes or devices differ, or the activation is unknown.
        TypeError: dtypes differ or are not floats.

    Example:
        >>> act_mul(*torch.randn(5, 64).chunk(2, -1)).shape
        torch.Size([5, 32])
    """
    if not torch.compiler.is_compiling():
        h = _act_mul_direct(gate, up, activation)
        if h is not None:
            return h
    _check_act_mul(gate, up, activation)
    return joints.act_mul(gate, up, activation)


def _check_act_mul(gate, up, activation):
    if activation not in reference.ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(reference.ACTIVATIONS)}, got {activation!r}")
    if gate.dim() == 0 or gate.shape != up.shape:
        raise ValueError(f"need gate and up [..., m], got gate {describe(gate)}, up {describe(up)}")
    require_float("gate", gate)
    require_same_dtype("gate", gate, "up", up)


def channel_sums(x: Tensor, mask: Tensor | None = None) -> Tensor:
    """Σ x, Σ |x| and Σ x² of every channel, in one pass over the tokens. It has no gradients.

    Args:
        x: tokens [..., n].
        mask: which of the T tokens count, [T] bool; None: all.

    Returns:
        [3, n], float32, or float64 of float64 tokens.

    Raises:
        ValueError: shapes or devices do not fit.
        TypeError: x is not of floats, or the mask not bool.

    Example:
        >>> channel_sums(torch.ones(5, 3))[2]
        tensor([5., 5., 5.])
    """
    require_float("x", x)
    if x.dim() == 0 or (mask is not None and mask.shape != (x[..., 0].numel(),)):
        given = "" if mask is None else f", mask {describe(mask)}"
        raise ValueError(f"need x [..., n] and mask [T], T the number of tokens, got x {describe(x)}{given}")
    if mask is not None:
        if mask.dtype != torch.bool:
            raise TypeError(f"mask must be bool, got {describe(mask)}")
        require_same_device("x", x, "mask", mask)
    return dispatch.implementation("channel_sums", x)(x.detach(), mask)


def _rms_norm_gradients(ctx, grad):
    with torch.enable_grad():
        found = differentiable_gradients(
            lambda x, weight: reference.rms_norm(x, weight, ctx.epsilon),
            ctx.saved_tensors,
            ctx.needs_input_grad[:2],
            grad,
        )
    return *found, None


def _rms_norm_save(ctx, inputs, output):
    *tensors, ctx.epsilon = inputs
    ctx.save_for_backward(*tensors)


def _rotary_gradients(ctx, of_q, of_k):
    with torch.enable_grad():
        return tuple(differentiable_gradients(reference.rotary, ctx.saved_tensors, ctx.needs_input_grad, (of_q, of_k)))


def _rotary_save(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


_act_mul_direct = direct("act_mul", _check_act_mul, lambda *_: 0)
_rms_norm = define_op(
    "rms_norm",
    "(Tensor x, Tensor weight, float epsilon) -> Tensor",
    (
        backends.cpp(lambda: cpp_backend.rms_norm),
        backends.one_launch(lambda: backends.triton().rms_norm),
        backends.torch(lambda: reference.rms_norm),
    ),
    fake=lambda x, weight, epsilon: x.new_empty(x.shape),
    check=_check_rms_norm,
    backward=_rms_norm_gradients,
    save=_rms_norm_save,
)
_rotary = define_op(
    "rotary",
    "(Tensor q, Tensor k, Tensor cos, Tensor sin) -> (Tensor, Tensor)",
    (
        backends.cpp(lambda: cpp_backend.rotary),
        backends.one_launch(lambda: backends.triton().rotary),
        backends.torch(lambda: reference.rotary),
    ),
    fake=lambda q, k, cos, sin: (torch.empty_like(q), torch.empty_like(k)),
    check=_check_rotary,
    backward=_rotary_gradients,
    save=_rotary_save,
)
dispatch.TABLE["channel_sums"] = (
    backends.cpp(lambda: cpp_backend.channel_sums),
    backends.torch(lambda: reference.channel_sums),
)
