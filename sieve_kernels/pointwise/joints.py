"""`act_mul` and `join_columns` with gradients, for layers made of library products.

Internal: `sieve_kernels.lowrank.training` combines them with torch's own products.
"""

import torch
from torch import Tensor

from sieve_kernels.core import dispatch
from sieve_kernels.core.checks import as_rows
from sieve_kernels.core.op import define_op, differentiable_gradients
from sieve_kernels.core.plans import listened, without_views
from sieve_kernels.lowrank.permutation import inverse
from sieve_kernels.pointwise import backends, reference


def act_mul(gate: Tensor, up: Tensor, activation: str) -> Tensor:
    """act(gate) · up in one pass; gate and up [..., m]. Differentiable, twice if need be."""
    return (_act_mul.op if _is_watched() else _ActMul.apply)(gate, up, activation)


def join_columns(z: Tensor, c: Tensor, permutation: Tensor, bias: Tensor | None) -> Tensor:
    """y [..., m], y[..., permutation] = [z, c] + bias[permutation]; z [..., r], c [..., m - r], permutation, bias [m].

    Differentiable, twice if need be.
    """
    return (_join_columns.op if _is_watched() else _JoinColumns.apply)(z, c, permutation, bias)


def _is_watched() -> bool:
    """Whether a compiler, mode or transform must see an operator. Else an autograd function gives the same gradients in
    a third of the host time."""
    return torch.compiler.is_compiling() or listened()


def _run_act_mul(gate, up, activation):
    function = dispatch.implementation("act_mul", gate)
    return function(as_rows(gate), as_rows(up), activation).view(gate.shape)


def _run_act_mul_backward(grad, gate, up, activation):
    function = dispatch.implementation("act_mul_backward", gate)
    found = function(as_rows(grad), as_rows(gate), as_rows(up), activation)
    return tuple(t.view(gate.shape) for t in found)


def _act_mul_save(ctx, inputs, output):
    *tensors, ctx.activation = inputs
    ctx.save_for_backward(*tensors)


def _act_mul_gradients(ctx, grad):
    if torch.is_grad_enabled():  # a gradient of this gradient will be taken
        return *differentiable_gradients(
            lambda *t: reference.act_mul(*t, ctx.activation), ctx.saved_tensors, ctx.needs_input_grad[:2], grad
        ), None
    return *_act_mul_backward.op(grad, *ctx.saved_tensors, ctx.activation), None


def _run_join_columns(z, c, permutation, bias):
    function = dispatch.implementation("join_columns", z)
    return function(as_rows(z), as_rows(c), inverse(permutation), bias).view(*z.shape[:-1], len(permutation))


def _run_gather_columns(x, index):
    return dispatch.implementation("gather_columns", x)(as_rows(x), index).view(*x.shape[:-1], len(index))


def _join_columns_save(ctx, inputs, output):
    z, _, permutation, _ = inputs
    ctx.r = z.shape[-1]
    ctx.save_for_backward(permutation)


def _join_columns_gradients(ctx, grad):
    (permutation,) = ctx.saved_tensors
    # torch's own where a gradient of this gradient will be taken.
    both = grad.index_select(-1, permutation) if torch.is_grad_enabled() else _gather_columns.op(grad, permutation)
    of_bias = as_rows(grad).sum(0) if ctx.needs_input_grad[3] else None
    return both[..., : ctx.r], both[..., ctx.r :], None, of_bias


class _ActMul(torch.autograd.Function):
    """The operator's gradients, without the operator."""

    @staticmethod
    def forward(ctx, *inputs):
        _act_mul_save(ctx, inputs, None)
        return without_views(_run_act_mul(*inputs))

    backward = staticmethod(_act_mul_gradients)


class _JoinColumns(torch.autograd.Function):
    """The operator's gradients, without the operator."""

    @staticmethod
    def forward(ctx, *inputs):
        _join_columns_save(ctx, inputs, None)
        return without_views(_run_join_columns(*inputs))

    backward = staticmethod(_join_columns_gradients)


_act_mul_backward = define_op(
    "act_mul_backward",
    "(Tensor grad, Tensor gate, Tensor up, str activation) -> (Tensor, Tensor)",
    (
        backends.one_launch(lambda: backends.triton_columns().act_mul_backward),
        backends.torch(lambda: reference.act_mul_backward),
    ),
    fake=lambda grad, gate, up, activation: (gate.new_empty(gate.shape), gate.new_empty(gate.shape)),
    run=_run_act_mul_backward,
)
_act_mul = define_op(
    "act_mul",
    "(Tensor gate, Tensor up, str activation) -> Tensor",
    (
        backends.one_launch(lambda: backends.triton_columns().act_mul),
        backends.torch(lambda: reference.act_mul),
    ),
    fake=lambda gate, up, activation: gate.new_empty(gate.shape),
    run=_run_act_mul,
    backward=_act_mul_gradients,
    save=_act_mul_save,
)
_gather_columns = define_op(
    "gather_columns",
    "(Tensor x, Tensor index) -> Tensor",
    (
        backends.one_launch(lambda: backends.triton_columns().gather_columns),
        backends.torch(lambda: reference.gather_columns),
    ),
    fake=lambda x, index: x.new_empty((*x.shape[:-1], index.shape[0])),
    run=_run_gather_columns,
)
_join_columns = define_op(
    "join_columns",
    "(Tensor z, Tensor c, Tensor permutation, Tensor? bias) -> Tensor",
    (
        backends.one_launch(lambda: backends.triton_columns().join_columns),
        backends.torch(lambda: reference.join_columns),
    ),
    fake=lambda z, c, permutation, bias: z.new_empty((*z.shape[:-1], permutation.shape[0])),
    run=_run_join_columns,
    backward=_join_columns_gradients,
    save=_join_columns_save,
)
