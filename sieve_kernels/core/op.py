"""Registering operators with PyTorch: one implementation per operator, which dispatches by `core.dispatch`.

`torch.library.define` and `impl` rather than `custom_op`, whose Python layers cost more than the operator itself for
one token: 16 against 5 microseconds a call where both were measured.
"""

from collections.abc import Callable, Sequence
from functools import wraps
from itertools import compress

import torch
from torch import Tensor

from sieve_kernels.core.plans import without_views


def register(
    name: str,
    schema: str,
    implementation: Callable,
    fake: Callable,
    backward: Callable | None = None,
    save: Callable | None = None,
) -> Callable:
    """Define `sieve_kernels::name` for CPU and GPU tensors, and return the operator.

    Args:
        name: the operator's name.
        schema: its signature in PyTorch's notation, with `Tensor(a!)` for what it writes.
        implementation: called with real tensors.
        fake: shapes, dtypes and strides of the outputs, for tracing.
        backward, save: gradients as for `torch.library.register_autograd`; None for an operator without.
    """
    qualified = f"sieve_kernels::{name}"
    implementation = implementation if backward is None else _without_views(implementation)
    torch.library.define(qualified, schema, tags=(torch.Tag.pt2_compliant_tag,))
    torch.library.impl(qualified, ("cpu", "cuda"), implementation)
    torch.library.register_fake(qualified, fake)
    if backward is not None:
        torch.library.register_autograd(qualified, backward, setup_context=save)
    return getattr(torch.ops.sieve_kernels, name).default


def _without_views(implementation: Callable) -> Callable:
    """The implementation, with outputs that may be changed in place: autograd refuses to where they are views."""

    @wraps(implementation)
    def call(*arguments):
        return without_views(implementation(*arguments))

    return call


def differentiable_gradients(
    definition: Callable, inputs: Sequence[Tensor], needed: Sequence[bool], grads: Tensor | Sequence[Tensor]
) -> list[Tensor | None]:
    """Gradients of `definition(*inputs)` by plain torch, of which gradients can be taken; None where not needed."""
    outputs = definition(*inputs)
    wanted = list(compress(inputs, needed))
    found = iter(torch.autograd.grad(outputs, wanted, grads, create_graph=True))
    return [next(found) if want else None for want in needed]
