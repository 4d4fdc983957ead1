"""Calls that are decided once for each kind of arguments, and calls that PyTorch's dispatcher need not see."""

import os
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import Parameter

from sieve_kernels import dispatch

MOST_PLANS = 4096
"""Kinds of arguments that an operator remembers; a long search through many ranks begins anew beyond it."""


class Plans:
    """A function of tensors that is prepared once for each kind of them: shapes, strides, dtypes, device, alignment.

    Args:
        prepare: called with the arguments, returns a function of them that need not look at shapes again.
    """

    def __init__(self, prepare: Callable[..., Callable]):
        self.prepare = prepare
        self._known: dict[tuple, Callable] = {}

    def __call__(self, *arguments):
        kind = kind_of(arguments)
        if kind is None:  # a tensor of a class of its own, of which nothing is known
            return self.prepare(*arguments)(*arguments)
        run = self._known.get(kind)
        if run is None:
            run = self._remember(kind, self.prepare(*arguments))
        return run(*arguments)

    def _remember(self, kind: tuple, run: Callable) -> Callable:
        if len(self._known) >= MOST_PLANS:
            self._known.clear()
        self._known[kind] = run
        return run


def once(plans: Plans) -> Callable:
    """`plans` for a caller who always brings arguments of the kind of its first call: decided then, and not again."""
    run = None

    def call(*arguments):
        nonlocal run
        if run is None:
            run = plans.prepare(*arguments)
        return run(*arguments)

    return call


class Direct(Plans):
    """An operator on a GPU without PyTorch's dispatcher: checked once for each kind of arguments, then only launched.

    The dispatcher asks autograd, tracers and modes, which takes as much of the host's time as a launch does. A call
    returns None where one of them has to know of it: then the operator is to be called as PyTorch has it.
    """

    def __call__(self, *arguments):
        kind = kind_of(arguments, torch.is_grad_enabled())
        if kind is None or _listened():
            return None
        kind = os.environ.get(dispatch.VARIABLE), kind
        run = self._known.get(kind)
        if run is None:
            run = self._remember(kind, self.prepare(*arguments))
        return run(*arguments)


def direct(operator: str, check: Callable[..., None], rank: Callable[..., int]) -> Direct:
    """The operator of this name in `dispatch`; check raises for arguments that do not fit, rank(*arguments) is what
    the choice depends on."""

    def prepare(*arguments) -> Callable:
        check(*arguments)
        function = dispatch.implementation(operator, arguments[0], rank(*arguments))
        return function.prepare(*arguments) if isinstance(function, Plans) else function

    return Direct(prepare)


def kind_of(arguments: Sequence, differentiable: bool = False) -> tuple | None:
    """What a plan for these arguments (tensors, constants, and sequences of them) depends on.

    None if there is a tensor of another class than PyTorch's own, or, if differentiable, one that requires a gradient.
    """
    kind = []
    add = kind.append
    for argument in arguments:
        of = type(argument)
        if of is Tensor or of is Parameter:
            if differentiable and argument.requires_grad:
                return None
            add(argument.shape)
            add(argument.stride())
            add(argument.dtype)
            add(argument.get_device())
            add(argument.data_ptr() & 15)
        elif of is tuple or of is list:
            inner = kind_of(argument, differentiable)
            if inner is None:
                return None
            add(inner)
        elif isinstance(argument, Tensor):
            return None
        else:
            add(argument)
    return tuple(kind)


def _listened() -> bool:
    """Whether a mode, a tracer or a transform wants to know of operators, or autocast to change their arguments."""
    return bool(
        torch.is_autocast_enabled("cuda")
        or torch._C._len_torch_dispatch_stack()
        or torch._C._is_torch_function_mode_enabled()
        or torch._C._functorch.peek_interpreter_stack() is not None
        or torch._C._get_tracing_state() is not None
    )
