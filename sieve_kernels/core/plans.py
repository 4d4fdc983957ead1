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
        run = self._known.get(kind)
        if run is None:
            run = self._remember(kind, self.prepare(*arguments))
        return run(*arguments)

    def _remember(self, kind: tuple, run: Callable) -> Callable:
        if not torch.compiler.is_compiling():
            if len(self._known) >= MOST_PLANS:
                self._known.clear()
            self._known[kind] = run
        return run

    def clear(self) -> None:
        """Forget everything, as when the device is another one than it was."""
        self._known.clear()


class Direct(Plans):
    """An operator without PyTorch's dispatcher: checked once for each kind of arguments, then only launched.

    Args:
        operator: its name in `dispatch`.
        check: raises for arguments that do not fit.
        rank: the rank of a call, as `dispatch.implementation` wants it.
    """

    def __init__(self, operator: str, check: Callable[..., None], rank: Callable[..., int]):
        super().__init__(self._prepare)
        self._operator, self._check, self._rank = operator, check, rank

    def __call__(self, *arguments):
        kind = os.environ.get(dispatch.VARIABLE), kind_of(arguments)
        run = self._known.get(kind)
        if run is None:
            run = self._remember(kind, self.prepare(*arguments))
        return run(*arguments)

    def _prepare(self, *arguments) -> Callable:
        self._check(*arguments)
        function = dispatch.implementation(self._operator, arguments[0], self._rank(*arguments))
        return function.prepare(*arguments) if isinstance(function, Plans) else function


def kind_of(arguments: Sequence) -> tuple:
    """What a plan for these arguments (tensors, constants, and sequences of them) depends on."""
    kind = []
    for argument in arguments:
        of = type(argument)
        if of is Tensor or of is Parameter:
            kind += (
                argument.shape,
                argument.stride(),
                argument.dtype,
                argument.get_device(),
                argument.data_ptr() & 15,
            )
        elif of is tuple or of is list:
            kind.append(kind_of(argument))
        else:
            kind.append(argument)
    return tuple(kind)


def is_direct(x: Tensor, *others: Tensor | None) -> bool:
    """Whether an operator may launch its kernels itself: its tensors are on a GPU, and nobody listens to the call.

    PyTorch's dispatcher asks autograd, tracers and modes, which takes as much of the host's time as a launch does.
    """
    if torch.compiler.is_compiling() or not x.is_cuda or torch.is_autocast_enabled("cuda"):
        return False
    differentiable = torch.is_grad_enabled()
    for tensor in (x, *others):
        of = type(tensor)
        if of is not Tensor and of is not Parameter:
            if tensor is not None:
                return False
        elif differentiable and tensor.requires_grad:
            return False
    return not (
        torch._C._len_torch_dispatch_stack()
        or torch._C._is_torch_function_mode_enabled()
        or torch._C._functorch.peek_interpreter_stack() is not None
        or torch._C._get_tracing_state() is not None
    )
