"""Starting a model in the middle: blocks that would compute what is known already are passed over.

Two candidates that agree on blocks 0 … k-1 have the same hidden states entering block k. An evaluation is a fixed
sequence of forward passes, so its state at block k is one tensor per pass; a second candidate takes them and runs
blocks k … L-1 alone. The decoder's own `forward` still calls every block, with its own masks and positions: only the
blocks' `forward` is exchanged, and nothing needs to be known of the architecture but the list of its blocks. Whether a
model really behaves so (no block looks behind its predecessor's output) is measured once, by `works`.
"""

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers.cache_utils import Cache

from sieve.models.linears import decoder_blocks
from sieve.nn.patching import forwarding

Through = Callable[[int, Callable, tuple, dict], Any]  # (block, its forward, arguments) → its output
States = list[torch.Tensor]  # hidden states entering one block, per forward pass [rows, tokens, hidden]


@dataclass
class Run:
    """What one evaluation did.

    states: block → hidden states entering it, for the blocks that were asked for.
    cells: rows × padded length, summed over the passes: what one whole block had to read.
    layer_tokens: the same, summed over the blocks that ran.
    head_rows: rows of logits that were computed.
    """

    states: dict[int, States] = field(default_factory=dict)
    cells: int = 0
    layer_tokens: int = 0
    head_rows: int = 0


class BlockWise:
    """A model whose evaluations can begin at any decoder block. A context manager: outside it the model is as it was.

    Raises: InputError where the model has no list of decoder blocks.
    """

    def __init__(self, model: nn.Module):
        _, self.blocks = decoder_blocks(model)
        self._head = model.get_output_embeddings()
        self._start, self._given, self._keep, self._through = 0, [], frozenset(), _plainly
        self._pass, self._run = -1, Run()
        self.parameters = sum(parameter.numel() for parameter in self.blocks.parameters()) // max(len(self), 1)
        self.checked = 0  # layer-tokens that `works` spent
        self.cell_bytes = 0  # of the hidden state of one token, once `works` has seen one
        self._tuples: dict[int, int] = {}  # block → length of the tuple it returns; absent: a tensor

    def __len__(self) -> int:
        return len(self.blocks)

    def __enter__(self) -> "BlockWise":
        self._changes = ExitStack()
        for index, block in enumerate(self.blocks):
            self._changes.enter_context(forwarding(block, self._wrapped(index, block.forward)))
        if self._head is not None:
            self._changes.callback(self._head.register_forward_pre_hook(self._count_head).remove)
        return self

    def __exit__(self, *exception) -> None:
        self._changes.close()

    def run(
        self,
        evaluation: Callable[[], object],
        start: int = 0,
        states: States = (),
        keep: Iterable[int] = (),
        through: Through | None = None,
    ) -> tuple[object, Run]:
        """The result of `evaluation`, with blocks before `start` replaced by their known result.

        Args:
            evaluation: runs the model; always by the same passes over the same tokens.
            start, states: first block that runs, and the hidden states entering it. 0 runs everything.
            keep: blocks whose entering states are wanted.
            through: what calls the blocks that run, if it is not done plainly.
        """
        self._start, self._given, self._keep, self._through = start, states, frozenset(keep), through or _plainly
        self._pass, self._run = -1, Run({block: [] for block in self._keep})
        try:
            result = evaluation()
        finally:
            run, self._start, self._given, self._keep, self._through = self._run, 0, [], frozenset(), _plainly
        return result, run

    def works(self, evaluation: Callable[[], object], same: Callable[[object, object], bool]) -> bool:
        """Whether an evaluation begun in the middle gives the `same` result as a whole one, on this model."""
        middle = len(self) // 2
        if middle < 1:
            return False
        whole, first = self.run(evaluation, keep=[middle])
        self.checked = first.layer_tokens
        self.cell_bytes = sum(state.nbytes for state in first.states[middle]) // max(first.cells, 1)
        if first.layer_tokens != first.cells * len(self):
            return False  # blocks that do not all see the same tokens
        try:
            part, second = self.run(evaluation, middle, first.states[middle])
        except Exception:  # whatever an unknown architecture makes of blocks that do nothing
            return False
        self.checked += second.layer_tokens
        return same(whole, part)

    def _wrapped(self, index: int, forward: Callable) -> Callable:
        def block(*args, **kwargs):
            if index == 0:
                self._pass += 1
            hidden = args[0] if args else kwargs["hidden_states"]
            size = hidden.shape[:-1].numel()
            if index == 0:
                self._run.cells += size
            if index < self._start:
                _fill_cache(args, kwargs, index, hidden)
                return (hidden, *[None] * (self._tuples[index] - 1)) if index in self._tuples else hidden
            if index == self._start and index:
                hidden = self._given[self._pass]
                if args:
                    args = (hidden, *args[1:])
                else:
                    kwargs["hidden_states"] = hidden
            if index in self._keep:
                self._run.states[index].append(hidden)
            self._run.layer_tokens += size
            output = self._through(index, forward, args, kwargs)
            if isinstance(output, tuple):
                self._tuples[index] = len(output)
            return output

        return block

    def _count_head(self, module: nn.Module, args: tuple) -> None:
        self._run.head_rows += args[0].shape[:-1].numel()


def _plainly(index: int, forward: Callable, args: tuple, kwargs: dict) -> Any:
    return forward(*args, **kwargs)


def _fill_cache(args: tuple, kwargs: dict, index: int, hidden: torch.Tensor) -> None:
    """Keys and values of a block that is passed over: of the right length, which positions follow from, and empty."""
    for value in (*args, *kwargs.values()):
        if isinstance(value, Cache):
            nothing = hidden.new_zeros(hidden.shape[0], 1, hidden.shape[1], 1)
            value.update(nothing, nothing, index)
            return
