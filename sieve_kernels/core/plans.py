"""Calls that are decided once for each kind of arguments, and what may be called without PyTorch's dispatcher."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

MOST_PLANS = 4096
"""Kinds of arguments that are remembered of an operator; a long search with many ranks begins anew beyond it."""


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
            run = self.prepare(*arguments)
            if len(self._known) >= MOST_PLANS:
                self._known.clear()
            self._known[kind] = run
        return run(*arguments)

    def clear(self) -> None:
        """Forget what was prepared, as when the device is not what it was."""
        self._known.clear()


def kind_of(arguments: Sequence) -> tuple:
    """What a plan for these arguments (tensors, None, sequences of them, and constants) depends on."""
    kind = []
    for argument in arguments:
        if isinstance(argument, Tensor):
            kind.append(argument.shape)
            kind.append(argument.stride())
            kind.append(argument.dtype)
            kind.append(argument.get_device())
            kind.append(argument.data_ptr() & 15)
        elif isinstance(argument, (list, tuple)):
            kind.append(kind_of(argument))
        else:
            kind.append(argument)
    return tuple(kind)


def is_direct(*tensors: Tensor | None) -> bool:
    """Whether an operator may call its kernels itself: the tensors are on a GPU, and nobody wants to know of the call.

    PyTorch's dispatcher asks autograd, tracers and modes, for as much of the host's time as a launch costs. It may be
    left out where none of them listens.
    """
    if torch.compiler.is_compiling() or not tensors[0].is_cuda:
        return False
    differentiated = torch.is_grad_enabled()
    for tensor in tensors:
        if tensor is not None:
            kind = type(tensor)
            if kind is not Tensor and kind is not torch.nn.Parameter:
                return False
            if differentiated and tensor.requires_grad:
                return False
    return not (
        torch._C._len_torch_dispatch_stack()
        or torch._C._is_torch_function_mode_enabled()
        or torch._C._functorch.peek_interpreter_stack() is not None
        or torch._C._get_tracing_state() is not None
    )
