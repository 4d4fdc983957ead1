"""Two models through the same tokens, block by block: the dense one and what it is being made into.

Both are one model whose layers are switched from one to the other. Between blocks the hidden states of all tokens are
kept, of both models.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from sieve.calibration.text import Batch
from sieve.models.blockwise import BlockwiseRunner
from sieve.models.decoder import run_decoder
from sieve.nn.patching import forwarding

SetPruned = Callable[[bool], None]
"""True: the layers of the current block are pruned; False: they are dense."""


class _ReachedError(Exception):
    """A layer has been given its inputs: the rest of the block is not needed."""


class PairedStates:
    """Hidden states of the dense and of the pruned model between two blocks, for every batch.

    A context manager. Blocks are entered and left in their order; `inputs` serves the block that was entered last.

    Args: model: dense, in eval mode; it is left as it was. data: the batches that both models read.
    """

    def __init__(self, model: PreTrainedModel, data: Sequence[Batch]):
        self._model, self._data, self._runner = model, data, BlockwiseRunner(model)
        masks = [batch.mask.to(model.device) for batch in data]
        self._dense: list[torch.Tensor] = []  # hidden states entering the current block, batch by batch
        self._weights = [None if bool(mask.all()) else mask.flatten().bool() for mask in masks]

    def __len__(self) -> int:
        """How many blocks there are."""
        return len(self._runner)

    def __enter__(self) -> "PairedStates":
        self._runner.__enter__()
        # The first batch runs through all blocks, so that it is known what each returns; the others, up to the first.
        for batch in range(len(self._data)):
            evaluation = partial(self._read_batch, batch)
            _, trace = self._runner.run(evaluation, keep=[0], stop=0 if self._dense else None)
            self._dense += trace.states[0]
        self._pruned = list(self._dense)
        return self

    def __exit__(self, *exception) -> None:
        self._runner.__exit__(*exception)

    def enter_block(self, index: int, layers: Iterable[nn.Module], set_pruned: SetPruned) -> None:
        """Run block `index` of the dense model. What `layers` in it read is kept until `inputs` asks for it."""
        self._index, self._set_pruned = index, set_pruned
        self._read: dict[nn.Module, list[torch.Tensor]] = {layer: [] for layer in layers}
        # Children of the block that hold these layers: what one of them returned in the pruned model, by batch.
        self._parts = [
            part
            for part in self._runner.blocks[index].children()
            if any(module in self._read for module in part.modules())
        ]
        self._finished: list[dict[nn.Module, Any]] = [{} for _ in self._data]

        def note(layer: nn.Module, args: tuple) -> None:
            self._read[layer].append(_rows(args[0]))

        set_pruned(False)
        with ExitStack() as hooks:
            for layer in self._read:
                hooks.callback(layer.register_forward_pre_hook(note).remove)
            self._dense = [self._pass(batch, states) for batch, states in enumerate(self._dense)]

    def inputs(self, layer: nn.Module) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]]:
        """What `layer` reads, batch by batch: [tokens, n] in the dense and in the pruned model, and which tokens count
        (None: all).

        Once for a layer, and in the order of execution: what runs before `layer` may not change any more, so that a
        part of the block that has come to its end need not run again.
        """
        found: list[torch.Tensor] = []

        def reach(layer: nn.Module, args: tuple) -> None:
            found.append(_rows(args[0]))
            raise _ReachedError

        read = self._read.pop(layer)
        self._set_pruned(True)
        for batch, weight in enumerate(self._weights):
            handle = layer.register_forward_pre_hook(reach)
            try:
                self._pruned_pass(batch)
            finally:
                handle.remove()
            yield read[batch], found.pop(), weight

    def leave_block(self) -> None:
        """Run the block in the pruned model, and so move on to the next."""
        self._set_pruned(True)
        for batch in range(len(self._pruned)):
            self._pruned[batch] = self._pruned_pass(batch)
            self._finished[batch].clear()

    def _pruned_pass(self, batch: int) -> torch.Tensor:
        """The block of the pruned model, without the parts that have come to their end before."""
        finished = self._finished[batch]
        with ExitStack() as stack:
            for part in self._parts:
                if part in finished:
                    stack.enter_context(forwarding(part, lambda *args, output=finished[part], **kwargs: output))
                else:
                    note = part.register_forward_hook(lambda part, args, output: finished.update({part: output}))
                    stack.callback(note.remove)
            return self._pass(batch, self._pruned[batch])

    def _pass(self, batch: int, states: torch.Tensor) -> torch.Tensor:
        """What leaves the current block when it is given these states; the states where a layer in it was reached."""
        _, trace = self._runner.run(
            partial(self._read_batch, batch), self._index, [states], [self._index + 1], self._call, self._index + 1
        )
        return trace.states[self._index + 1][0]

    def _call(self, index: int, forward: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
        try:
            return forward(*args, **kwargs)
        except _ReachedError:
            return self._runner.passed_over(index, args[0] if args else kwargs["hidden_states"])

    def _read_batch(self, batch: int) -> None:
        run_decoder(self._model, self._data[batch].ids, self._data[batch].mask)


def _rows(x: torch.Tensor) -> torch.Tensor:
    """x [..., n] as [tokens, n]."""
    return x.reshape(-1, x.shape[-1])
