"""`lowrank_swiglu`: the function users call, its checks, and the registration of operator and gradients."""

import torch
from torch import Tensor

from sieve_kernels.core import dispatch
from sieve_kernels.core.checks import autocast, autocasts, describe
from sieve_kernels.core.dispatch import Implementation
from sieve_kernels.core.op import define_op, differentiable_gradients
from sieve_kernels.lowrank import training
from sieve_kernels.lowrank.checks import check_factors
from sieve_kernels.mlp import backends, cpp_backend, reference, torch_backend


def lowrank_swiglu(
    x: Tensor, A_gate: Tensor, B_gate: Tensor, A_up: Tensor, B_up: Tensor, activation: str = "silu"
) -> Tensor:
    """y = act(gate) · up with gate = (x A_gateᵀ) B_gateᵀ and up = (x A_upᵀ) B_upᵀ, neither of which is stored.

    Differentiable in all five tensors, twice if need be; gate, up and the intermediates are recomputed, not stored
    (but kept for many rows on a GPU). Under autocast it computes in autocast's dtype, as `F.linear` does.

    Args:
        x: inputs [..., n].
        A_gate, A_up: first factors [r, n] and [q, n]; ranks may differ.
        B_gate, B_up: second factors [m, r] and [m, q].
        activation: "silu", "gelu", "gelu_tanh" (the tanh approximation) or "relu".

    Returns:
        y [..., m] in x's dtype (float16, bfloat16, float32 or float64, the same for all arguments).

    Raises:
        ValueError: shapes or devices do not fit, or the activation is unknown.
        TypeError: dtypes differ or are not floats.

    Example:
        >>> x, A, B = torch.randn(5, 64), torch.randn(16, 64), torch.randn(32, 16)
        >>> lowrank_swiglu(x, A, B, torch.randn(8, 64), torch.randn(32, 8)).shape
        torch.Size([5, 32])
    """
    if not torch.compiler.is_compiling():
        y = _swiglu.direct(x, A_gate, B_gate, A_up, B_up, activation)
        if y is not None:
            return y
    if autocasts(x):
        x, A_gate, B_gate, A_up, B_up = (autocast(t) for t in (x, A_gate, B_gate, A_up, B_up))
    _check(x, A_gate, B_gate, A_up, B_up, activation)
    if training.by_library(x, A_gate, B_gate, A_up, B_up):
        return training.swiglu(x, A_gate, B_gate, A_up, B_up, activation)
    return _swiglu.op(x, A_gate, B_gate, A_up, B_up, activation)


def _check(x, A_gate, B_gate, A_up, B_up, activation):
    if activation not in reference.ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(reference.ACTIVATIONS)}, got {activation!r}")
    check_factors(x, A_gate, B_gate, names=("A_gate", "B_gate", "bias"))
    check_factors(x, A_up, B_up, names=("A_up", "B_up", "bias"))
    if B_gate.shape[0] != B_up.shape[0]:
        raise ValueError(f"B_gate {describe(B_gate)} and B_up {describe(B_up)} must have one number of rows")


def _rank(A_gate, A_up):
    return max(A_gate.shape[0], A_up.shape[0])


def _swiglu_backward_fake(grad, x, A_gate, B_gate, A_up, B_up, activation, needed):
    return [t.new_empty(t.shape) for t, wanted in zip((x, A_gate, A_up, B_gate, B_up), needed, strict=True) if wanted]


def _save(ctx, inputs, output):
    *tensors, ctx.activation = inputs
    ctx.save_for_backward(*tensors)


def _gradients(ctx, grad):
    tensors, needed = ctx.saved_tensors, ctx.needs_input_grad[:5]
    if torch.is_grad_enabled():  # a gradient of this gradient will be taken
        gradients = differentiable_gradients(lambda *t: reference.swiglu(*t, ctx.activation), tensors, needed, grad)
        return *gradients, None
    of_x, of_A_gate, of_B_gate, of_A_up, of_B_up = needed
    needed = [of_x, of_A_gate, of_A_up, of_B_gate, of_B_up]
    found = iter(_swiglu_backward.op(grad, *tensors, ctx.activation, needed))
    x, A_gate, A_up, B_gate, B_up = (next(found) if wanted else None for wanted in needed)
    return x, A_gate, B_gate, A_up, B_up, None


_swiglu_backward = define_op(
    "lowrank_swiglu_backward",
    "(Tensor grad, Tensor x, Tensor A_gate, Tensor B_gate, Tensor A_up, Tensor B_up, str activation, bool[] needed)"
    " -> Tensor[]",
    (
        Implementation("torch", lambda: torch_backend.swiglu_backward, "library products", dispatch.anywhere),
        Implementation(
            "triton",
            lambda: backends.triton().swiglu_backward,
            "gate and up recomputed in registers",
            dispatch.on_triton,
        ),
    ),
    fake=_swiglu_backward_fake,
    rank=lambda grad, x, A_gate, B_gate, A_up, *_: _rank(A_gate, A_up),
    first=1,
)
_swiglu = define_op(
    "lowrank_swiglu",
    "(Tensor x, Tensor A_gate, Tensor B_gate, Tensor A_up, Tensor B_up, str activation) -> Tensor",
    (
        dispatch.cpp(lambda: cpp_backend.swiglu),
        Implementation(
            "torch",
            lambda: torch_backend.swiglu,
            "library products, activated in place, block by block",
            dispatch.on_cpu,
        ),
        Implementation(
            "torch",
            lambda: backends.torch_gpu().swiglu,
            "library products, activated in one pass",
            dispatch.on_gpu,
            dispatch.by_library,
        ),
        dispatch.triton_gemv(lambda: backends.triton_gemv().swiglu),
        Implementation("triton", lambda: backends.triton().swiglu, "gate and up meet in registers", dispatch.on_triton),
    ),
    fake=lambda x, A_gate, B_gate, *_: x.new_empty((*x.shape[:-1], B_gate.shape[0])),
    rank=lambda x, A_gate, B_gate, A_up, *_: _rank(A_gate, A_up),
    check=_check,
    backward=_gradients,
    save=_save,
)
