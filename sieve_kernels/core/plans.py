"""Calls that are decided once for each kind of arguments, and calls that PyTorch's dispatcher need not see."""

import os
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Parameter

from sieve_kernels.core import decisions, dispatch

MOST_PLANS = 4096
"""Kinds of arguments that an operator remembers; a long search through many ranks begins anew beyond it."""

_ENVIRONMENT, _VARIABLE = os.environ._data, os.environ.encodekey(dispatch.VARIABLE)
"""What `os.environ` reads: it takes a tenth of a call's time to find that a variable is not there."""


class Plans:
    """A function of tensors that is prepared once for each kind of them: shapes, strides, dtypes, device, alignment.

    Args:
        prepare: called with the arguments, returns a function of them that need not look at shapes again.
    """

    def __init__(self, prepare: Callable[..., Callable]):
        self.prepare = prepare
        self._known: dict[tuple, Callable] = {}
        decisions.register(self)

    def __call__(self, *arguments):
        kind = kind_of(arguments)
        if kind is None:  # a tensor of a class of its own, of which nothing is known
            return self.prepare(*arguments)(*arguments)
        run = self._known.get(kind)
        if run is None:
            run = self._remember(kind, self.prepare(*arguments))
        return run(*arguments)

    def clear(self) -> None:
        """Forget every plan, so that calls are decided anew."""
        self._known.clear()

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
    """An operator without PyTorch's dispatcher: checked once for each kind of arguments, then only launched.

    The dispatcher asks autograd, tracers and modes, which takes as much time as a GPU's launch or a CPU's product of a
    row does. A call returns None where one of them has to know of it, and for tensors without plain memory on a CPU or
    GPU: then the operator is to be called as PyTorch has it.
    """

    def __call__(self, *arguments):
        try:
            kind = kind_of(arguments, torch.is_grad_enabled())
        except RuntimeError:  # a tensor without strides or memory: sparse, or of a library's own layout
            return None
        if kind is None or listened():
            return None
        kind = _ENVIRONMENT.get(_VARIABLE), kind
        run = self._known.get(kind)
        if run is None:
            if not _are_plain(arguments):
                return None
            run = self._remember(kind, self.prepare(*arguments))
        return run(*arguments)


def direct(
    operator: str, check: Callable[..., None], rank: Callable[..., int], look: Callable[..., None] | None = None
) -> Direct:
    """The operator of this name in `dispatch`.

    Args:
        check: raises for arguments that do not fit.
        rank: what the choice depends on, of the arguments.
        look: on a CPU, where values can be looked at, raises for those that do not fit, on every call.
    """

    def prepare(*arguments) -> Callable:
        check(*arguments)
        run = prepared(dispatch.implementation(operator, arguments[0], rank(*arguments)), *arguments)
        return looking(look, run) if look is not None and arguments[0].is_cpu else run

    return Direct(prepare)


def prepared(function: Callable, *arguments) -> Callable:
    """What serves arguments of this kind; its outputs are no views, which could not be changed in place later."""
    if isinstance(function, Plans):
        return function.prepare(*arguments)
    return lambda *arguments: without_views(function(*arguments))


def looking(look: Callable[..., None], run: Callable) -> Callable:
    """run, after a look at the arguments."""

    def call(*arguments):
        look(*arguments)
        return run(*arguments)

    return call


def without_views(outputs: Tensor | Sequence[Tensor]) -> Tensor | Sequence[Tensor]:
    """The same memory without the record of being a view: nobody else holds what an operator has just made."""
    if isinstance(outputs, Tensor):
        return torch.ops.aten._unsafe_view.default(outputs, outputs.shape) if outputs._is_view() else outputs
    return type(outputs)(map(without_views, outputs))


def kind_of(arguments: Sequence, differentiable: bool = False) -> tuple | None:
    """What a plan for these arguments (tensors, constants, and sequences of them) depends on.

    None if there is a tensor of another class than PyTorch's own, or, if differentiable, one that requires a gradient.
    """
    kind = []
    for argument in arguments:
        of = type(argument)
        if of is Tensor or of is Parameter:
            if differentiable and argument.requires_grad:
                return None
            at = argument.data_ptr()
            # A tensor without memory has no device number either.
            aligned = at & 15 if at else None
            kind += argument.shape, argument.stride(), argument.dtype, argument.get_device(), aligned
        elif of is tuple or of is list:
            inner = kind_of(argument, differentiable)
            if inner is None:
                return None
            kind.append(inner)
        elif isinstance(argument, Tensor):
            return None
        else:
            kind.append(argument)
    return tuple(kind)


def _are_plain(arguments: Sequence) -> bool:
    """Whether all tensors are on a CPU or GPU, with elements of a row adjacent: then none is a lazy negation either."""
    return all(
        _are_plain(argument)
        if isinstance(argument, (tuple, list))
        else (argument.is_cpu or argument.is_cuda) and argument.stride()[-1:] == (1,)
        for argument in arguments
        if isinstance(argument, (tuple, list, Tensor))
    )


def listened() -> bool:
    """Whether a mode, a tracer, a profiler or a transform wants to know of operators, or autocast to change their
    arguments."""
    return bool(
        torch._C._is_any_autocast_enabled()
        or torch._C._autograd._profiler_enabled()
        or forward_ad._current_level >= 0
        or torch._C._len_torch_dispatch_stack()
        or torch._C._is_torch_function_mode_enabled()
        or torch._C._functorch.peek_interpreter_stack() is not None
        or torch._C._get_tracing_state() is not None
    )
