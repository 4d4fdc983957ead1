"""Blocks of a candidate batch's passes as CUDA graphs: recorded once, then launched as one.

Candidate batches have a fixed size and a rung has the same passes for each, so a block is called with the same shapes
again and again. What differs is the values of its inputs, which are copied to where the graph reads them, and the
candidates, whose ranks `ElasticModel.set_batch` always leaves in the same memory. The second call of a signature (a
block, and all of its arguments but the tensors' values) is recorded; the results are the same bits as those of the
block itself.

The same kernels must be launched whichever candidates are dense: in a graph the dense products of all candidates are
made, and those of the others are thrown away. So only calls are recorded that are so small that launching them costs
more than that.
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

MAX_WORK = 1 << 35
"""Multiplications of a block's dense layers in one call, above which it is not recorded. An estimate, not measured:
some tenths of a millisecond by data sheets, the time that Python takes to launch the kernels of a block."""

MAX_SIGNATURES = 1024
"""Signatures of calls that are remembered. The first ones stay: in a search all of them come again and again."""

BUFFER_BYTES = 1 << 30
"""Of inputs and results; a call that needs more than what is left of them is not recorded."""

Work = Callable[[], None]
Recorder = Callable[[Work], Work]  # what some work launches, to be launched again; work reads and writes buffers


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
    """A call that was recorded, and the buffers of its inputs and results."""

    inputs: list[torch.Tensor]
    results: list[torch.Tensor] = field(default_factory=list)
    signature: Hashable = None  # of the results: the output, and new keys and values
    replay: Work | None = None


class GraphedBlocks:
    """Calls blocks; `BlockwiseRunner.run` takes it as `call_block`. What it recorded goes when it goes.

    Args:
        recorder: records and replays.
        blocks: of the model.
        capture_safe: inside its block the same kernels are launched whichever candidates are dense
            (`ElasticModel.capture_safe`).
        max_cells: rows × tokens of a call, above which it is not recorded.
    """

    def __init__(
        self,
        recorder: Recorder,
        blocks: Sequence[nn.Module],
        capture_safe: Callable[[], AbstractContextManager],
        max_cells: int,
        max_signatures: int = MAX_SIGNATURES,
        buffer_bytes: int = BUFFER_BYTES,
    ):
        self._recorder, self._capture_safe, self._max_cells = recorder, capture_safe, max_cells
        self._max_signatures, self._buffer_bytes = max_signatures, buffer_bytes
        self._modules = [list(block.modules())[1:] for block in blocks]  # within a block: whose hooks no replay calls
        self._calls: dict[Hashable, _Call | None] = {}  # None: not recorded, not yet or not at all
        self._seen: set[Hashable] = set()
        self._memory: dict[tuple[int, int], torch.Tensor] = {}  # number of the tensor, bytes → uint8 [bytes]
        self._able = True

    def __call__(self, index: int, forward: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
        hidden = args[0] if args else kwargs["hidden_states"]
        hooked = any(module._forward_hooks or module._forward_pre_hooks for module in self._modules[index])
        if hooked or hidden.shape[:-1].numel() > self._max_cells:
            return forward(*args, **kwargs)
        given = FlatCall(index)
        try:
            key = index, given.flatten((args, kwargs))
        except UncapturableError:
            return forward(*args, **kwargs)
        # Record a signature's second call: what comes once is not worth it.
        if key in self._seen and key not in self._calls:
            self._calls[key] = self._recorded(index, forward, key[1], given.tensors)
        elif len(self._seen) < self._max_signatures:
            self._seen.add(key)
        call = self._calls.get(key)
        if call is None:
            return forward(*args, **kwargs)
        # Replay it on the values of this call, and hand its keys and values to the caches that the call brought.
        for buffer, tensor in zip(call.inputs, given.tensors, strict=True):
            _copy(buffer, tensor)
        call.replay()
        output, new = FlatCall(index, [buffer.clone() for buffer in call.results]).unflatten(call.signature)
        for cache, tensors in zip(given.caches, new, strict=True):
            if tensors is not None:
                cache.update(*tensors, index)
        return output

    def _recorded(
        self, index: int, forward: Callable, signature: Hashable, tensors: list[torch.Tensor]
    ) -> _Call | None:
        if not self._able:
            return None

        def work() -> None:
            given = FlatCall(index, call.inputs)
            args, kwargs = given.unflatten(signature)
            with self._capture_safe():
                output = forward(*args, **kwargs)
            found = FlatCall(index)
            call.signature = found.flatten((output, [cache.new for cache in given.caches]))
            if not call.results:
                call.results = self._buffers(found.tensors, len(tensors))
            for buffer, tensor in zip(call.results, found.tensors, strict=True):
                _copy(buffer, tensor)

        # Recording runs the work, on the values of this call.
        try:
            call = _Call(self._buffers(tensors, 0))
            for buffer, tensor in zip(call.inputs, tensors, strict=True):
                _copy(buffer, tensor)
            call.replay = self._recorder(work)
        except _BuffersFullError:
            return None
        except Exception as error:  # whatever an unknown architecture does that no graph can hold
            self._able = False  # a recording that broke off keeps others from beginning
            warnings.warn(f"blocks are launched kernel by kernel: recording one failed ({error})", stacklevel=2)
            return None
        return call

    def _buffers(self, tensors: list[torch.Tensor], first: int) -> list[torch.Tensor]:
        """Memory laid out as these tensors are. All calls share it: each has copied its results out of it."""
        return [self._buffer(number, tensor) for number, tensor in enumerate(tensors, first)]

    def _buffer(self, number: int, tensor: torch.Tensor) -> torch.Tensor:
        steps = zip(tensor.shape, tensor.stride(), strict=True)
        span = 1 + sum((size - 1) * step for size, step in steps) if tensor.numel() else 0
        size = 1 << max(span * tensor.dtype.itemsize - 1, 15).bit_length()  # few sizes: shapes share memory
        if (number, size) not in self._memory:
            if sum(key[1] for key in self._memory) + size > self._buffer_bytes:
                raise _BuffersFullError
            self._memory[number, size] = torch.empty(size, dtype=torch.uint8, device=tensor.device)
        return self._memory[number, size].view(tensor.dtype).as_strided(tensor.shape, tensor.stride())


class _BuffersFullError(Exception):
    """There is no memory left for the inputs and results of another call."""


def _copy(buffer: torch.Tensor, tensor: torch.Tensor) -> None:
    """Values into a buffer of the same layout; values that share memory are copied once."""
    once = tuple(slice(0, 1) if stride == 0 else slice(None) for stride in buffer.stride())
    buffer[once].copy_(tensor[once])
