"""Defining operators: one definition registers the operator, its fake and its gradients with PyTorch, and its
implementations with `dispatch`.

It uses `torch.library.define` and `impl` instead of `custom_op`, whose Python layers take longer than the operator for
one token: 16 microseconds per call instead of 5 where both were measured.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from itertools import compress

import torch
from torch import Tensor

from sieve_kernels.core import dispatch
from sieve_kernels.core.dispatch import Implementation
from sieve_kernels.core.plans import Direct, without_views
from sieve_kernels.core.plans import direct as make_direct


@dataclass(frozen=True)
class Operator:
    """The result of `define_op`: `op`, the operator in PyTorch, and `direct`, which bypasses PyTorch's dispatcher."""

    op: Callable
    direct: Direct | None


def define_op(
    name: str,
    schema: str,
    implementations: Sequence[Implementation],
    fake: Callable,
    run: Callable | None = None,
    rank: Callable[..., int] = lambda *_: 0,
    first: int = 0,
    look: Callable[..., None] | None = None,
    check: Callable[..., None] | None = None,
    direct: Direct | None = None,
    backward: Callable | None = None,
    save: Callable | None = None,
) -> Operator:
    """Define `sieve_kernels::name` for CPU and GPU tensors.

    Args:
        name: the operator's name.
        schema: its signature in PyTorch's notation, with `Tensor(a!)` for what it writes.
        implementations: in order of preference.
        fake: shapes, dtypes and strides of the outputs, for tracing.
        run: called with real tensors; None: the implementation chosen for the input and the rank.
        rank: of the arguments; the choice depends on it.
        first: index of the argument that the choice depends on (in a backward pass it is not the gradient).
        look: raises if values do not fit; not called while tracing, which has no values.
        check: raises if shapes, dtypes or devices do not fit. With it, calls may bypass PyTorch's dispatcher.
        direct: the function that bypasses the dispatcher, if its arguments differ from the operator's.
        backward, save: gradients as for `torch.library.register_autograd`; None for an operator without.
    """
    dispatch.TABLE[name] = tuple(implementations)

    def chosen(*arguments):
        if look is not None:
            look(*arguments)
        return dispatch.implementation(name, arguments[first], rank(*arguments))(*arguments)

    qualified, run = f"sieve_kernels::{name}", run or chosen
    torch.library.define(qualified, schema, tags=(torch.Tag.pt2_compliant_tag,))
    torch.library.impl(qualified, ("cpu", "cuda"), run if backward is None else _without_views(run))
    torch.library.register_fake(qualified, fake)
    if backward is not None:
        torch.library.register_autograd(qualified, backward, setup_context=save)
    if check is not None:
        direct = make_direct(name, check, rank, look)
    return Operator(getattr(torch.ops.sieve_kernels, name).default, direct)


def gradients_fake(*arguments: Tensor) -> list[Tensor]:
    """Shapes of the gradients of an operator `…_backward(grad, *inputs, needed)`, of the inputs that need one."""
    _, *inputs, needed = arguments
    return [t.new_empty(t.shape) for t, wanted in zip(inputs, needed, strict=False) if wanted]


def _without_views(implementation: Callable) -> Callable:
    """The implementation with outputs that are no views, because autograd forbids changing some views in place."""

    @wraps(implementation)
    def call(*arguments):
        return without_views(implementation(*arguments))

    return call


def differentiable_gradients(
    definition: Callable, inputs: Sequence[Tensor], needed: Sequence[bool], grads: Tensor | Sequence[Tensor]
) -> list[Tensor | None]:
    """Gradients of `definition(*inputs)` by plain torch, which are differentiable; None where not needed."""
    outputs = definition(*inputs)
    pairs = [(outputs, grads)] if isinstance(outputs, Tensor) else zip(outputs, grads, strict=True)
    # Of several outputs some may not depend on what needs a gradient.
    outputs, grads = zip(*((output, grad) for output, grad in pairs if output.requires_grad), strict=True)
    wanted = list(compress(inputs, needed))
    found = iter(torch.autograd.grad(outputs, wanted, grads, create_graph=True))
    return [next(found) if want else None for want in needed]
