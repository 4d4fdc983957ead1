"""`Plans`: calls that are prepared once per kind of arguments. `Direct`: calls that bypass PyTorch's dispatcher."""

import os
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Parameter

from sieve_kernels.core import decisions, dispatch

MOST_PLANS = 4096
"""Most kinds of arguments that an operator caches; beyond it, as in long searches over ranks, the cache is cleared."""

_ENVIRONMENT, _VARIABLE = os.environ._data, os.environ.encodekey(dispatch.VARIABLE)
"""The dictionary behind `os.environ`, whose own lookup of a missing variable takes a tenth of a call's time."""


class Plans:
    """A function of tensors that is prepared once per kind of tensors: shapes, strides, dtypes, device, alignment.

    Args:
        prepare: called with the arguments; returns a function of them that need not look at shapes again.
    """

    def __init__(self, prepare: Callable[..., Callable]):
        self.prepare = prepare
        self._known: dict[tuple, Callable] = {}
        decisions.register(self)

    def __call__(self, *arguments):
        kind = kind_of(arguments)
        if kind is None:  # a tensor of an unknown subclass
            return self.prepare(*arguments)(*arguments)
        run = self._known.get(kind)
        if run is None:
            run = self._remember(kind, self.prepare(*arguments))
        return run(*arguments)

    def clear(self) -> None:
        """Drop all plans, so that calls are decided again."""
        self._known.clear()

    def _remember(self, kind: tuple, run: Callable) -> Callable:
        if len(self._known) >= MOST_PLANS:
            self._known.clear()
        self._known[kind] = run
        return run


def once(plans: Plans) -> Callable:
    """`plans` for a caller whose arguments always have the kind of its first call: decided only then."""
    run = None

    def call(*arguments):
        nonlocal run
        if run is None:
            run = plans.prepare(*arguments)
        return run(*arguments)

    return call


class Direct(Plans):
    """An operator that bypasses PyTorch's dispatcher: checked once per kind of arguments, then only launched.

    The dispatcher consults autograd, tracers and modes, which takes as long as a launch on a GPU or a product of one
    row on a CPU. A call returns None if one of them must see it, or if a tensor has no plain memory on a CPU or GPU:
    then call the operator through PyTorch.
    """

    def __call__(self, *arguments):
        try:
            kind = kind_of(arguments, torch.is_grad_enabled())
        except RuntimeError:  # a tensor without strides or memory, such as a sparse one
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
        check: raises if arguments do not fit.
        rank: of the arguments; the choice depends on it.
        look: raises if values do not fit; called on every call on a CPU, where reading values is cheap.
    """

    def prepare(*arguments) -> Callable:
        check(*arguments)
        run = prepared(dispatch.implementation(operator, arguments[0], rank(*arguments)), *arguments)
        return looking(look, run) if look is not None and arguments[0].is_cpu else run

    return Direct(prepare)


def prepared(function: Callable, *arguments) -> Callable:
    """The function for arguments of this kind. Its outputs are no views, so they can be changed in place later."""
    if isinstance(function, Plans):
        return function.prepare(*arguments)
    return lambda *arguments: without_views(function(*arguments))


def looking(look: Callable[..., None], run: Callable) -> Callable:
    """`run`, preceded by `look` at the arguments."""

    def call(*arguments):
        look(*arguments)
        return run(*arguments)

    return call


def without_views(outputs: Tensor | Sequence[Tensor]) -> Tensor | Sequence[Tensor]:
    """The same memory, no longer marked as a view: the operator has just made it, so no other tensor shares it."""
    if isinstance(outputs, Tensor):
        return torch.ops.aten._unsafe_view.default(outputs, outputs.shape) if outputs._is_view() else outputs
    return type(outputs)(map(without_views, outputs))


def kind_of(arguments: Sequence, differentiable: bool = False) -> tuple | None:
    """The key of a plan for these arguments (tensors, constants, and sequences of them).

    None for tensors of other classes than PyTorch's, and, if differentiable, for tensors that require a gradient.
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
    """Whether all tensors are on a CPU or GPU with adjacent elements in rows; this also excludes lazy negation."""
    return all(
        _are_plain(argument)
        if isinstance(argument, (tuple, list))
        else (argument.is_cpu or argument.is_cuda) and argument.stride()[-1:] == (1,)
        for argument in arguments
        if isinstance(argument, (tuple, list, Tensor))
    )


def listened() -> bool:
    """Whether a mode, tracer, profiler or transform must see operators, or autocast must convert their arguments."""
    return bool(
        torch._C._is_any_autocast_enabled()
        or torch._C._autograd._profiler_enabled()
        or forward_ad._current_level >= 0
        or torch._C._len_torch_dispatch_stack()
        or torch._C._is_torch_function_mode_enabled()
        or torch._C._functorch.peek_interpreter_stack() is not None
        or torch._C._get_tracing_state() is not None
    )
