"""Bytes of the tensors that a function allocates: they are the same on every processor.

Memory that a library allocates inside a product (packed operands, scratch) depends on the processor and is not counted.
"""

import weakref
from collections.abc import Callable

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class _Storages(TorchDispatchMode):
    """Counts the results of torch's operators while they are alive. What happens inside an operator, so also inside
    ours, is hidden from it."""

    def __init__(self, known: tuple[torch.Tensor | None, ...]):
        super().__init__()
        self.held = self.peak = 0
        self._alive = {t.untyped_storage()._cdata for t in known if t is not None}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **kwargs or {})
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self._note(tensor.untyped_storage())
        return result

    def _note(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._alive:
            return
        self._alive.add(key)
        self.held += size
        self.peak = max(self.peak, self.held)
        weakref.finalize(storage, self._gone, key, size)

    def _gone(self, key: int, size: int) -> None:
        self._alive.discard(key)
        self.held -= size


def peak_bytes(work: Callable[..., object], *tensors: torch.Tensor | None) -> int:
    """The most bytes that `work(*tensors)` holds at one time, its result included, `tensors` not.

    work: made of torch's operators; of ours, their implementation.
    """
    with torch.no_grad(), _Storages(tensors) as storages:
        work(*tensors)
    return storages.peak
