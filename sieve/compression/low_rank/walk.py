"""Two models through the same tokens, block by block: the dense one and what it is being turned into.

Both are one model whose layers `turn` from one to the other. Their hidden states of all tokens are kept between
blocks, and what else a block is called with (masks, positions) is noted once, from a pass in which no block works.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from sieve.calibration.text import Batch
from sieve.models.linears import decoder_blocks
from sieve.nn.patching import forwarding

Turn = Callable[[bool], None]
"""True: the layers of the block at hand are pruned; False: they are dense."""


class _Reached(Exception):
    """A layer has been given its inputs: the rest of the block is not needed."""


class Walk:
    """Hidden states of the dense and the pruned model between two blocks, for every batch.

    Args: model: dense, in eval mode; it is left as it is. data: what is run through it.
    """

    def __init__(self, model: PreTrainedModel, data: Sequence[Batch]):
        _, self._blocks = decoder_blocks(model)
        self._weights = [None if bool(mask.all()) else mask.bool() for mask in (b.mask.to(model.device) for b in data)]
        self._calls: list[list[tuple[tuple, dict]]] = []  # batch → block → what it is called with, but for the states
        self._dense: list[torch.Tensor] = []
        self._returned: list[int | None] = []  # by block, the length of the tuple it returns; None: a tensor
        self._read: dict[nn.Module, list[torch.Tensor]] = {}  # by layer, its inputs in the dense model, batch by batch
        self._parts: list[nn.Module] = []  # of the block at hand, those that hold what is looked at
        self._ended: list[dict[nn.Module, Any]] = []  # batch → part → what it returned in the pruned model
        for batch in data:
            self._record(model, batch)
        self._pruned = list(self._dense)

    def enter(self, index: int, layers: Iterable[nn.Module], turn: Turn) -> None:
        """Run block `index` of the dense model. What `layers` in it read is kept until `inputs` asks for it."""
        self._read = {layer: [] for layer in layers}
        self._parts = [
            part for part in self._blocks[index].children() if any(one in self._read for one in part.modules())
        ]
        self._ended = [{} for _ in self._dense]

        def note(layer: nn.Module, args: tuple) -> None:
            self._read[layer].append(args[0].reshape(-1, args[0].shape[-1]))

        handles = [layer.register_forward_pre_hook(note) for layer in self._read]
        turn(False)
        try:
            for batch, states in enumerate(self._dense):
                self._dense[batch] = self._run(index, batch, states)
        finally:
            for handle in handles:
                handle.remove()

    def inputs(
        self, index: int, layer: nn.Module, turn: Turn
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]]:
        """What `layer` in block `index` reads, batch by batch: [tokens, n] in the dense and in the pruned model, and
        which tokens count (None: all). Once for a layer, after `enter`, and in the order of execution: what runs before
        `layer` may not change any more, so that a part of the block that ends before it need not run again."""
        found, read = [], self._read.pop(layer)
        turn(True)

        def reach(layer: nn.Module, args: tuple) -> None:
            found.append(args[0].reshape(-1, args[0].shape[-1]))
            raise _Reached

        for batch, weight in enumerate(self._weights):
            handle = layer.register_forward_pre_hook(reach)
            try:
                with suppress(_Reached):
                    self._go_on(index, batch)
            finally:
                handle.remove()
            yield read[batch], found.pop(), None if weight is None else weight.flatten()

    def leave(self, index: int, turn: Turn) -> None:
        """Run block `index` of the pruned model, and so move on to the next."""
        turn(True)
        for batch in range(len(self._pruned)):
            self._pruned[batch] = self._go_on(index, batch)
            self._ended[batch].clear()

    def _go_on(self, index: int, batch: int) -> torch.Tensor:
        """Run block `index` of the pruned model, without the parts that have come to their end before."""
        ended = self._ended[batch]
        with ExitStack() as stack:
            for part in self._parts:
                if part in ended:
                    stack.enter_context(forwarding(part, lambda *args, output=ended[part], **kwargs: output))
                else:
                    note = part.register_forward_hook(lambda part, args, output: ended.update({part: output}))
                    stack.callback(note.remove)
            return self._run(index, batch, self._pruned[batch])

    def _run(self, index: int, batch: int, states: torch.Tensor) -> torch.Tensor:
        args, kwargs = self._calls[batch][index]
        output = self._blocks[index](states, *args, **kwargs)
        return output[0] if isinstance(output, tuple) else output

    def _record(self, model: PreTrainedModel, batch: Batch) -> None:
        """One pass that notes what every block is called with. None works, but for the first time they are called."""
        calls: list[tuple[tuple, dict]] = []

        def idle(index: int, forward: Callable):
            def block(*args, **kwargs):
                states, rest = (args[0], args[1:]) if args else (kwargs["hidden_states"], ())
                if index == 0:
                    self._dense.append(states)
                calls.append((rest, {key: value for key, value in kwargs.items() if key != "hidden_states"}))
                if len(self._returned) == index:  # whether a block returns a tuple, only its call can tell
                    output = forward(*args, **kwargs)
                    self._returned.append(len(output) if isinstance(output, tuple) else None)
                    return output
                length = self._returned[index]
                return states if length is None else (states, *[None] * (length - 1))

            return block

        with ExitStack() as stack:
            for index, block in enumerate(self._blocks):
                stack.enter_context(forwarding(block, idle(index, block.forward)))
            model.base_model(
                input_ids=batch.ids.to(model.device), attention_mask=batch.mask.to(model.device), use_cache=False
            )
        self._calls.append(calls)
