"""Scores of many candidates, with as little work as the result allows.

The examples are cut into slices; a candidate is evaluated on one slice at a time, so that it can leave a race early.
What is asked together is walked as a tree of block prefixes (`walk`), each evaluation beginning at the first block that
differs (`blocks`); what is finished is kept in memory and, if there is one, in the journal. No shortcut changes a bit
of a slice's scores: the passes are the same whatever ran before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sieve import progress
from sieve.errors import InputError
from sieve.fitness.blocks import BlockWise, States
from sieve.fitness.cost import Cost, Spent
from sieve.fitness.evaluate import Prepared, Scores
from sieve.fitness.store import StateStore, size_of
from sieve.fitness.walk import Step, walk
from sieve.models import evaluating
from sieve.plan import DENSE, Matrix

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from sieve.fitness.journal import Journal

Ranks = tuple[int, ...]  # per matrix, in the order of the blocks; 0 is dense
MEMORY = 2 << 30


def slices(examples: Sequence, number: int = 4, least: int = 16) -> list[Sequence]:
    """Cut examples so that each slice is as long as all before it: 1/8, 1/8, 1/4, 1/2 for `number` 4.

    Fewer slices where the first would have less than `least` examples.
    """
    while number > 1 and len(examples) >> (number - 1) < least:
        number -= 1
    borders = [0, *(len(examples) >> (number - 1 - part) for part in range(number))]
    return [examples[first:end] for first, end in pairwise(borders)]


class Engine:
    """Evaluates plans on slices of examples. A context manager: inside it the model is in eval mode and prepared.

    Args:
        set_plan: turns the model to a plan, as `Slices.set` does.
        matrices: of the model; the plan decides nothing else.
        parts: the slices of the examples, made ready.
        layers: reuse the states of blocks that candidates have in common.
        memory: bytes that such states may take.
        journal: open, or None.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        set_plan: Callable[[Mapping[str, int | str]], None],
        matrices: Mapping[str, Matrix],
        parts: Sequence[Prepared],
        *,
        layers: bool = True,
        memory: int = MEMORY,
        journal: Journal | None = None,
    ):
        self._model, self._set, self._parts, self._memory = model, set_plan, list(parts), memory
        self._names = [matrix.name for matrix in sorted(matrices.values(), key=lambda matrix: matrix.block)]
        self._block_of = [matrices[name].block for name in self._names]
        self.blocks = BlockWise(model)
        self._journal = journal
        self._records: dict[str, tuple[Scores, Spent]] = {}  # what is known, from this process or an earlier one
        self._cells: dict[int, int] = {}  # per slice, cells of one block
        self._store = StateStore(len(self.blocks), memory // 2)
        self._charged: set[str] = set()  # what this process asked for
        self.layers = layers and all(part.fixed_passes for part in parts)
        # Layer-tokens of what was asked for, each call for itself: the same whatever was interrupted in between.
        self.nominal = 0
        self.peak_bytes = 0  # of stored states
        head, block = model.get_output_embeddings(), self.blocks.parameters
        self.cost = Cost(
            len(self.blocks),
            head.weight.numel() / block if head is not None and block else 0.0,
            [part.plain_tokens for part in parts],
            [part.padded_tokens for part in parts],
        )
        if journal is not None:
            evaluations = {key: record for key, record in journal.records.items() if "score" in record}
            self._records = {key: _from_record(record) for key, record in evaluations.items()}

    @contextmanager
    def running(self) -> Iterator[Engine]:
        """Inside the block plans can be scored."""
        with evaluating(self._model), torch.inference_mode(), self.blocks:
            if self.layers:
                self._set({})
                with progress.shown(False):
                    self.layers = self.blocks.works(lambda: self._parts[0].run(self._model), _same)
                self.cost.probed(self.blocks.checked)
                if not self.layers:
                    progress.say("  note: this model's blocks cannot be run one by one: no states are shared")
            try:
                yield self
            finally:
                self._set({})

    def __len__(self) -> int:
        """How many slices there are."""
        return len(self._parts)

    def ranks(self, plan: Mapping[str, int | str]) -> Ranks:
        """The plan as numbers; what tells candidates apart.

        Raises: InputError for a plan that names a matrix outside the search.
        """
        unknown = set(plan) - set(self._names)
        if unknown:
            raise InputError(f"the plan names {min(unknown)!r}, which this search leaves alone")
        return tuple(0 if plan.get(name, DENSE) == DENSE else plan[name] for name in self._names)

    def full(self, plan: Mapping[str, int | str]) -> Scores:
        """Scores on all slices."""
        return concatenated([self.scores([plan], part)[0] for part in range(len(self))])

    def scores(self, plans: Sequence[Mapping[str, int | str]], part: int) -> list[Scores]:
        """Scores of each plan on slice `part`, in the order of the plans. Nothing is evaluated twice."""
        keys = [self._key(plan, part) for plan in plans]
        fresh = {key: plan for key, plan in zip(keys, plans, strict=True) if key not in self._charged}
        missing = {key: plan for key, plan in fresh.items() if key not in self._records}
        for key in keys:
            if key not in missing:
                self.cost.found(part)
        self._evaluate(missing, part)
        for key, plan in fresh.items():
            self._charged.add(key)
            self.cost.evaluated(self.ranks(plan), part, self._records[key][1])
        if fresh:
            cells = self._cells[part] = self._records[keys[0]][1].cells
            self.nominal += cells * sum(len(self.blocks) - step.start for step in self._walk(fresh, part))
        return [self._records[key][0] for key in keys]

    def _evaluate(self, plans: Mapping[str, Mapping[str, int | str]], part: int) -> None:
        keys = list(plans)
        prefixes = [self._by_block(self.ranks(plan)) for plan in plans.values()]
        stored: dict[int, States] = {}
        for step in self._walk(plans, part, [self._store.deepest(part, prefix) for prefix in prefixes]):
            key, prefix = keys[step.index], prefixes[step.index]
            # The store is not what it was when the walk was planned: states have come, or had to leave.
            start = max([0, *stored, self._store.deepest(part, prefix)]) if self.layers else 0
            states = stored[start] if start in stored else self._store.get(part, prefix[:start])
            anchors = [block for block in self._store.anchors if block > start] if self.layers else []
            self._set(plans[key])
            with progress.shown(False):
                scores, run = self.blocks.run(
                    lambda: self._parts[part].run(self._model), start, states, {*step.keep, *anchors}
                )
            for block in anchors:
                self._store.put(part, prefix[:block], run.states[block])
            stored |= {block: run.states[block] for block in step.keep if block > start}
            self.peak_bytes = max(self.peak_bytes, self._store.bytes + sum(map(size_of, stored.values())))
            for block in step.drop:
                stored.pop(block, None)
            spent = Spent(run.layer_tokens, run.cells, run.head_rows)
            self._cells[part] = run.cells
            self._records[key] = (scores, spent)
            if self._journal is not None:
                self._journal.add(key, _to_record(scores, spent))

    def retain(self, plans: Sequence[Mapping[str, int | str]]) -> None:
        """Of states kept between calls, only those that these plans' descendants may share are still of use."""
        self._store.retain([self._by_block(self.ranks(plan)) for plan in plans])

    def _walk(
        self, plans: Mapping[str, Mapping[str, int | str]], part: int, known: Sequence[int] | None = None
    ) -> list[Step]:
        if not self.layers:
            return [Step(index, 0, (), ()) for index in range(len(plans))]
        return walk([self._by_block(self.ranks(plan)) for plan in plans.values()], self._most(part), known)

    def _most(self, part: int) -> int:
        """How many blocks' states half the memory has room for; the other half is the store's."""
        cells = self._cells.get(part, 2 * self._parts[part].padded_tokens)  # until it is known: never more
        return self._memory // 2 // max(cells * self._width(), 1)

    def _width(self) -> int:
        config = self._model.config.get_text_config(decoder=True)
        return config.hidden_size * self._model.dtype.itemsize

    def _by_block(self, ranks: Ranks) -> tuple[Ranks, ...]:
        by_block: list[list[int]] = [[] for _ in range(len(self.blocks))]
        for block, rank in zip(self._block_of, ranks, strict=True):
            by_block[block].append(rank)
        return tuple(map(tuple, by_block))

    def _key(self, plan: Mapping[str, int | str], part: int) -> str:
        return f"{part}:{','.join(map(str, self.ranks(plan)))}"


def concatenated(parts: Sequence[Scores]) -> Scores:
    """Scores on consecutive slices as one."""
    return Scores(
        np.concatenate([part.score for part in parts]),
        np.concatenate([part.loglik for part in parts]),
        sum(part.tokens for part in parts),
    )


def _same(one: Scores, two: Scores) -> bool:
    return np.array_equal(one.score, two.score) and np.allclose(one.loglik, two.loglik, rtol=0, atol=1e-4)


def _to_record(scores: Scores, spent: Spent) -> dict[str, Any]:
    return {
        "score": scores.score.tolist(), "loglik": scores.loglik.tolist(), "tokens": scores.tokens, "cost": asdict(spent)
    }  # fmt: skip


def _from_record(record: Mapping[str, Any]) -> tuple[Scores, Spent]:
    scores = Scores(np.array(record["score"]), np.array(record["loglik"]), record["tokens"])
    return scores, Spent(**record["cost"])
