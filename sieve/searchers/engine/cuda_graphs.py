"""Blocks of a team's passes as CUDA graphs: recorded once, then launched as one.

A team is always as many candidates and a slice has the same passes for each, so a block is called with the same shapes
again and again. What differs is the values of its inputs, which are copied to where the graph reads them, and the
candidates, whose ranks stand where `ElasticModel.set_batch` leaves them. The second call of a form (a block, and all
that its arguments are but the tensors' values) is recorded; the results are the same bits as those of the block itself.

Whoever is dense, the same kernels must be launched: in a graph everybody's dense products are made, and those of the
others are thrown away. So only calls are recorded that are so small that launching them costs more than that.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from sieve.searchers.engine.call_signature import FlatCall, UncapturableError

WORK = 1 << 35
"""Multiplications of a block's dense layers in one call, above which it is not recorded. An estimate, not measured:
some tenths of a millisecond by data sheets, the time that Python takes to launch the kernels of a block."""

MOST = 1024
"""Forms of calls that are remembered. The first ones stay: in a search all of them come again and again."""

ROOM = 1 << 30
"""Bytes of inputs and results in place; a call that needs more than what is left of them is not recorded."""

Work = Callable[[], None]
Recorder = Callable[[Work], Work]  # what some work launches, to be launched again; work reads and writes in place


class CudaRecorder:
    """Records CUDA graphs on `device`, which share the memory of what is between their inputs and results."""

    def __init__(self, device: torch.device):
        self._stream = torch.cuda.Stream(device)
        with torch.cuda.device(device):
            self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, work: Work) -> Work:
        before = torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(before)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.stream(self._stream):  # also around the recording, which stays on it where it fails
            work()  # compiles and loads kernels, which no recording may
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
                work()
        before.wait_stream(self._stream)
        return graph.replay


@dataclass
class _Call:
    """A call that was recorded: where its inputs and results are."""

    inputs: list[torch.Tensor]
    results: list[torch.Tensor] = field(default_factory=list)
    form: Hashable = None  # of the results: the output, and new keys and values
    replay: Work | None = None


class Graphs:
    """Calls blocks; `BlockwiseRunner.run` takes it as `call_block`. What it recorded goes when it goes.

    Args:
        recorder: records and replays.
        blocks: of the model.
        capture_safe: inside its block the same kernels are launched whoever is dense (`ElasticModel.capture_safe`).
        cells: rows × tokens of a call, above which it is not recorded.
    """

    def __init__(
        self,
        recorder: Recorder,
        blocks: Sequence[nn.Module],
        capture_safe: Callable[[], AbstractContextManager],
        cells: int,
        most: int = MOST,
        room: int = ROOM,
    ):
        self._recorder, self._capture_safe, self._cells, self._most, self._room = (
            recorder,
            capture_safe,
            cells,
            most,
            room,
        )
        self._modules = [list(block.modules())[1:] for block in blocks]  # within a block: whose hooks no replay calls
        self._calls: dict[Hashable, _Call | None] = {}  # None: not recorded, not yet or not at all
        self._seen: set[Hashable] = set()
        self._memory: dict[tuple[int, int], torch.Tensor] = {}  # place among inputs and results, bytes → uint8 [bytes]
        self._able = True

    def __call__(self, index: int, forward: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
        hidden = args[0] if args else kwargs["hidden_states"]
        hooked = any(module._forward_hooks or module._forward_pre_hooks for module in self._modules[index])
        if hooked or hidden.shape[:-1].numel() > self._cells:
            return forward(*args, **kwargs)
        given = FlatCall(index)
        try:
            key = index, given.take((args, kwargs))
        except UncapturableError:
            return forward(*args, **kwargs)
        if key in self._seen and key not in self._calls:
            self._calls[key] = self._recorded(index, forward, key[1], given.tensors)
        elif len(self._seen) < self._most:
            self._seen.add(key)
        call = self._calls.get(key)
        if call is None:
            return forward(*args, **kwargs)
        for place, tensor in zip(call.inputs, given.tensors, strict=True):
            _copy(place, tensor)
        call.replay()
        output, new = FlatCall(index, [place.clone() for place in call.results]).give(call.form)
        for cache, tensors in zip(given.caches, new, strict=True):
            if tensors is not None:
                cache.update(*tensors, index)
        return output

    def _recorded(self, index: int, forward: Callable, form: Hashable, tensors: list[torch.Tensor]) -> _Call | None:
        if not self._able:
            return None

        def work() -> None:
            parts = FlatCall(index, call.inputs)
            args, kwargs = parts.give(form)
            with self._capture_safe():
                output = forward(*args, **kwargs)
            found = FlatCall(index)
            call.form = found.take((output, [cache.new for cache in parts.caches]))
            if not call.results:
                call.results = self._places(found.tensors, len(tensors))
            for place, tensor in zip(call.results, found.tensors, strict=True):
                _copy(place, tensor)

        try:
            call = _Call(self._places(tensors, 0))
            for place, tensor in zip(call.inputs, tensors, strict=True):
                _copy(place, tensor)
            call.replay = self._recorder(work)
        except _NoRoomError:
            return None
        except Exception as error:  # whatever an unknown architecture does that no graph can hold
            self._able = False  # a recording that broke off keeps others from beginning
            warnings.warn(f"blocks are launched kernel by kernel: recording one failed ({error})", stacklevel=2)
            return None
        return call

    def _places(self, tensors: list[torch.Tensor], first: int) -> list[torch.Tensor]:
        """Memory laid out as these tensors are. All calls have it in common: each has copied its results out of it."""
        return [self._place(number, tensor) for number, tensor in enumerate(tensors, first)]

    def _place(self, number: int, tensor: torch.Tensor) -> torch.Tensor:
        steps = zip(tensor.shape, tensor.stride(), strict=True)
        span = 1 + sum((size - 1) * step for size, step in steps) if tensor.numel() else 0
        size = 1 << max(span * tensor.dtype.itemsize - 1, 15).bit_length()  # few sizes: shapes share memory
        if (number, size) not in self._memory:
            if sum(key[1] for key in self._memory) + size > self._room:
                raise _NoRoomError
            self._memory[number, size] = torch.empty(size, dtype=torch.uint8, device=tensor.device)
        return self._memory[number, size].view(tensor.dtype).as_strided(tensor.shape, tensor.stride())


class _NoRoomError(Exception):
    """For more inputs and results."""


def _copy(place: torch.Tensor, tensor: torch.Tensor) -> None:
    """Values into a place of the same layout; those that are one in memory once."""
    once = tuple(slice(0, 1) if step == 0 else slice(None) for step in place.stride())
    place[once].copy_(tensor[once])
