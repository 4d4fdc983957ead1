"""The one place that replaces how a module runs.

Only `forward` is replaced, on the instance: class, children and parameters stay, so that other libraries see the module
that they know. A replaced module can be pickled, deep-copied and sent to another process.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from torch import nn


def replace_forward(module: nn.Module, function: Callable) -> None:
    """Have `module(...)` call `function(module, ...)`.

    `function` is of a module's top level: pickle stores its name. It is bound by `partial`, since pickle would look a
    bound method up on the class of `module`.
    """
    module.forward = partial(function, module)


def replaced_by(module: nn.Module) -> Callable | None:
    """The function by which `replace_forward` has replaced the forward; None if it has not."""
    own = module.__dict__.get("forward")
    return own.func if type(own) is partial else None


def restore_forward(module: nn.Module) -> None:
    """Undo `replace_forward`."""
    del module.forward  # the class's shows again


@contextmanager
def forwarding(module: nn.Module, forward: Callable) -> Iterator[None]:
    """Inside the block the module runs `forward` instead of its own."""
    own = module.__dict__.get("forward")  # accelerate, for one, sets such
    module.forward = forward
    try:
        yield
    finally:
        if own is None:
            del module.forward  # the class's shows again
        else:
            module.forward = own


def is_untouched(module: nn.Module) -> bool:
    """Whether calling `module` runs its class's forward and nothing else: no hook, no patched forward."""
    return "forward" not in module.__dict__ and not has_hooks(module)


def has_hooks(module: nn.Module) -> bool:
    own = module.__dict__
    return bool(
        own["_forward_hooks"] or own["_forward_pre_hooks"] or own["_backward_hooks"] or own["_backward_pre_hooks"]
    )
