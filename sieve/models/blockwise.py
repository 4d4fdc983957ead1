"""The block-by-block runner: a model's forward passes of which only some decoder blocks run.

Two candidates of a search that agree on blocks 0 … k-1 have the same hidden states entering block k: the second one
takes them and runs blocks k … L-1 alone. A refit goes through a model one block after the other. Both are the same
mechanism: an evaluation is a fixed sequence of forward passes, its state at block k is one tensor per pass, and blocks
outside [start, stop) pass on what they are given.

The decoder's own `forward` still calls every block, with its own masks and positions. Only the blocks' `forward` is
replaced, so nothing needs to be known of the architecture but the list of its blocks. Whether a model really behaves so
(no block looks behind its predecessor's output) is measured once, by `can_start_midway`.
"""

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers.cache_utils import Cache

from sieve.models.decoder import decoder_blocks
from sieve.models.halving import Rows, rows_of_pass, watching
from sieve.nn.patching import forwarding
from sieve.utils.devices import device_failed

CallBlock = Callable[[int, Callable, tuple, dict], Any]  # (block, its forward, arguments) → its output
States = list[torch.Tensor]  # hidden states entering one block, per forward pass [rows, tokens, hidden]


@dataclass
class RunTrace:
    """What one evaluation did.

    states: block → hidden states entering it, for the blocks that were asked for; L stands for the last one's output.
    cells: rows × padded length, summed over the passes: what one whole block had to read.
    layer_tokens: the same, summed over the blocks that ran.
    head_rows: rows of logits that were computed.
    """

    states: dict[int, States] = field(default_factory=dict)
    cells: int = 0
    layer_tokens: int = 0
    head_rows: int = 0

    def joined(self, other: "RunTrace") -> "RunTrace":
        """Of this evaluation and one of the same passes, whose rows go behind this one's."""
        states = {
            block: [torch.cat(pair) for pair in zip(passes, other.states[block], strict=True)]
            for block, passes in self.states.items()
        }
        return RunTrace(
            states, self.cells + other.cells, self.layer_tokens + other.layer_tokens, self.head_rows + other.head_rows
        )


class BlockwiseRunner:
    """Runs evaluations of a model from any decoder block to any other. A context manager: outside it the model is as
    it was.

    A block must have run once before it is passed over: only then it is known what it returns.

    Raises: InputError where the model has no list of decoder blocks.
    """

    def __init__(self, model: nn.Module):
        _, self.blocks = decoder_blocks(model)
        self._head = model.get_output_embeddings()
        self.parameters = sum(parameter.numel() for parameter in self.blocks.parameters()) // max(len(self), 1)
        self.checked = 0  # layer-tokens that `can_start_midway` spent
        self.cell_bytes = 0  # of the hidden state of one token, once `can_start_midway` has seen one
        self._tuples: dict[int, int] = {}  # block → length of the tuple it returns; absent: a tensor
        self._reset()

    def __len__(self) -> int:
        return len(self.blocks)

    def __enter__(self) -> "BlockwiseRunner":
        self._changes = ExitStack()
        for index, block in enumerate(self.blocks):
            self._changes.enter_context(forwarding(block, self._wrapped(index, block.forward)))
        self._changes.enter_context(watching(self))
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
        call_block: CallBlock | None = None,
        stop: int | None = None,
    ) -> tuple[object, RunTrace]:
        """The result of `evaluation` with blocks `start` … `stop` - 1 alone, and what it did.

        Args:
            evaluation: runs the model; always by the same passes over the same tokens.
            start, states: first block that runs, and the hidden states entering it. 0 without states: the embeddings.
            keep: blocks whose entering states are wanted; L for what leaves the last one.
            call_block: calls the blocks that run, instead of a plain call.
            stop: the first block that does not run any more: it and all later ones pass on what they are given, so
                that the result of `evaluation` means nothing. None: all run.
        """
        self._reset()  # passes outside of `run` count, too
        self._start, self._stop, self._given = start, len(self) if stop is None else stop, states
        self._keep, self._call_block = frozenset(keep), call_block or _plainly
        trace = self._trace = RunTrace({block: [] for block in self._keep})
        try:
            return evaluation(), trace
        finally:
            self._reset()

    def passed_over(self, index: int, hidden: torch.Tensor) -> Any:
        """What block `index` returns where it changes nothing: in the form of its own output."""
        return (hidden, *[None] * (self._tuples[index] - 1)) if index in self._tuples else hidden

    def can_start_midway(self, evaluation: Callable[[], object], same: Callable[[object, object], bool]) -> bool:
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
        except Exception as error:  # whatever an unknown architecture makes of blocks that do nothing
            if device_failed(error):
                raise
            return False
        self.checked += second.layer_tokens
        return same(whole, part)

    def mark(self) -> tuple:
        """Where the books stand, for `rewind`."""
        trace = self._trace
        states = {block: (len(passes), passes[-1:]) for block, passes in trace.states.items()}
        return self._pass, trace.cells, trace.layer_tokens, trace.head_rows, states

    def rewind(self, mark: tuple) -> None:
        """Forget what came since, as it broke off."""
        trace = self._trace
        self._pass, trace.cells, trace.layer_tokens, trace.head_rows, states = mark
        for block, (number, last) in states.items():
            trace.states[block][max(number - 1, 0) :] = last

    def _reset(self) -> None:
        """Between evaluations every block runs, and nothing is kept."""
        self._start, self._stop, self._given, self._keep, self._call_block = 0, len(self), (), frozenset(), _plainly
        self._pass, self._trace = -1, RunTrace()

    def _wrapped(self, index: int, forward: Callable) -> Callable:
        last = len(self) - 1

        def block(*args, **kwargs):
            hidden = args[0] if args else kwargs["hidden_states"]
            size = hidden.shape[:-1].numel()
            rows = rows_of_pass()
            if index == 0:
                # A pass that runs in parts begins with its first one.
                self._pass += rows is None or rows.first == 0
                self._trace.cells += size

            # At the first block that runs, what is known takes the place of what was passed on.
            if index == self._start and self._given:
                hidden = _of_rows(self._given[self._pass], rows)
                if args:
                    args = (hidden, *args[1:])
                else:
                    kwargs["hidden_states"] = hidden
            if index in self._keep:
                self._keep_states(index, hidden, rows)
            if not self._start <= index < self._stop:
                _fill_cache(args, kwargs, index, hidden)
                return self.passed_over(index, hidden)

            self._trace.layer_tokens += size
            output = self._call_block(index, forward, args, kwargs)
            if isinstance(output, tuple):
                self._tuples[index] = len(output)
            if index == last and index + 1 in self._keep:
                self._keep_states(index + 1, output[0] if isinstance(output, tuple) else output, rows)
            return output

        return block

    def _keep_states(self, index: int, hidden: torch.Tensor, rows: Rows | None) -> None:
        states = self._trace.states[index]
        if rows is None or rows.first == 0:
            states.append(hidden)
            return
        # The rest of a pass that runs in parts goes behind what is there, in each copy of its rows.
        parts = (part.unflatten(0, (-1, number)) for part, number in
                 ((states[-1], rows.first), (hidden, rows.end - rows.first)))  # fmt: skip
        states[-1] = torch.cat(list(parts), 1).flatten(0, 1)

    def _count_head(self, module: nn.Module, args: tuple) -> None:
        self._trace.head_rows += args[0].shape[:-1].numel()


def _of_rows(state: torch.Tensor, rows: Rows | None) -> torch.Tensor:
    """These rows of each copy in the state [copies · rows, tokens, hidden] of a whole pass."""
    if rows is None or rows.end - rows.first == rows.total:
        return state
    return state.unflatten(0, (-1, rows.total))[:, rows.first : rows.end].flatten(0, 1)


def _plainly(index: int, forward: Callable, args: tuple, kwargs: dict) -> Any:
    return forward(*args, **kwargs)


def _fill_cache(args: tuple, kwargs: dict, index: int, hidden: torch.Tensor) -> None:
    """Keys and values of a block that is passed over: of the right length, which positions follow from, and empty."""
    for value in (*args, *kwargs.values()):
        if isinstance(value, Cache):
            nothing = hidden.new_zeros(hidden.shape[0], 1, hidden.shape[1], 1)
            value.update(nothing, nothing, index)
            return
