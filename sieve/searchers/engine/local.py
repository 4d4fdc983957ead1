"""Candidates on rungs of the examples, in this process.

What is asked together is evaluated in the order of a tree of block prefixes (`prefix_tree`), each evaluation beginning
at the first block that differs (`BlockwiseRunner`). States that later calls may share are kept (`prefix_cache`). The
passes are the same whatever ran before, so a candidate's scores are the same bits in whatever order it is evaluated.

On a GPU, several candidates go through one forward pass: a candidate batch. Batches have a fixed size; short batches
repeat the last candidate, so that kernel shapes do not depend on batch composition, and blocks can be recorded
(`cuda_graphs`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from sieve.evaluation.scoring import Prepared, Scores
from sieve.models.blockwise import BlockwiseRunner, RunTrace, States
from sieve.models.halving import attempt
from sieve.models.loading import evaluating
from sieve.models.matrix import Matrix
from sieve.searchers.engine.config import EngineConfig
from sieve.searchers.engine.cost import Spent
from sieve.searchers.engine.cuda_graphs import MAX_WORK, GraphedBlocks, Recorder
from sieve.searchers.engine.prefix_cache import StateStore, bytes_of
from sieve.searchers.engine.prefix_tree import Step, depth_first, schedule
from sieve.utils import progress

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from sieve.compression.low_rank.elastic import ElasticModel

Ranks = tuple[int, ...]  # per matrix, in the order of the blocks; 0 is dense
CandidateBatch = Sequence[Ranks]  # candidates that are evaluated together: one, or candidate_batch_size
Result = tuple[int, Scores, Spent]  # index of the candidate, its scores and what they cost


class Evaluator:
    """Runs a model at any ranks of its matrices.

    Args:
        model: with the layers that `elastic` has put into it.
        elastic: sets the model to a plan, or to several; from `CompressionSpace.elastic`.
        matrices: of the model; what ranks are of, in the order of `names`.
        rungs: of the examples, made ready.
        config: the engine's switches, of which it uses `layers` and `memory`.
        candidate_batch_size: how many candidates are one batch, where several are asked for and the rungs can do it.
        recorder: makes, for the model's device, what records the passes of batches; None: they are not recorded.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        elastic: ElasticModel,
        matrices: Mapping[str, Matrix],
        rungs: Sequence[Prepared],
        config: EngineConfig,
        candidate_batch_size: int = 1,
        recorder: Callable[[torch.device], Recorder] | None = None,
    ):
        self.model, self.elastic, self.matrices = model, elastic, matrices
        self.config, self.memory = config, config.memory
        able = hasattr(elastic, "set_batch") and all(rung.run_copies for rung in rungs)
        self.candidate_batch_size = candidate_batch_size if able else 1
        self.recorder = recorder if self.candidate_batch_size > 1 else None
        self.rungs = list(rungs)
        ordered = sorted(matrices.values(), key=lambda matrix: matrix.block)
        self.names = [matrix.name for matrix in ordered]
        self.blocks = BlockwiseRunner(model)
        self.layers = config.layers and all(rung.fixed_passes for rung in rungs)
        self.cells: dict[int, int] = {}  # per rung, cells of one block, once they are known
        self.peak_bytes = 0  # of stored states
        self._block_of = [matrix.block for matrix in ordered]
        self._store = StateStore(len(self.blocks), config.memory // 2)
        # Of the call that is under way: its rung, batches and steps, and the states that its later steps start from.
        self._rung, self._batches, self._steps, self._alone = 0, [], [], True
        self._stored: dict[int, States] = {}
        self._graphs: GraphedBlocks | None = None  # while running
        self._most = candidate_batch_size  # candidates of one pass, at most; fewer where memory does not suffice

    @contextmanager
    def running(self) -> Iterator[Evaluator]:
        """Inside the block candidates can be evaluated."""
        with evaluating(self.model), torch.inference_mode(), self.blocks:
            self._graphs = self._recorded()
            try:
                yield self
            finally:
                self._graphs = None
                self.elastic.set_plan({})

    def check(self) -> int:
        """Find out whether this model's blocks can be begun in the middle; returns the layer-tokens that it took."""
        if not self.layers:
            return 0
        self.elastic.set_plan({})
        with progress.muted():
            self.layers = self.blocks.can_start_midway(lambda: self.rungs[0].run(self.model), _same)
        return self.blocks.checked

    def evaluate(self, candidates: Sequence[Ranks], rung: int, alone: bool = True) -> Iterator[Result]:
        """Results on a rung, in the order of evaluation. No two candidates are equal. `alone`: see `batches_of`."""
        batches = self.batches_of(candidates, alone)
        self.begin([[candidates[index] for index in batch] for batch in batches], rung, alone)
        for place, batch in enumerate(batches):
            for index, (scores, spent) in zip(batch, self.step(place), strict=True):
                yield index, scores, spent

    def batches_of(self, candidates: Sequence[Ranks], alone: bool) -> list[list[int]]:
        """Indices of the candidates of each batch, in the order of the tree of prefixes; one in each if `alone`."""
        ordered = depth_first([self.by_block(ranks) for ranks in candidates])
        number = 1 if alone else self.candidate_batch_size
        return [ordered[first : first + number] for first in range(0, len(ordered), number)]

    def begin(self, batches: Sequence[CandidateBatch], rung: int, alone: bool) -> None:
        """Plan the evaluation of these batches, ordered as by `batches_of`; what was planned before is forgotten."""
        self._rung, self._batches, self._stored = rung, batches, {}
        self._alone = alone or self.candidate_batch_size == 1
        if self._alone:
            candidates = [ranks for (ranks,) in batches]
            known = [self._store.deepest(rung, self.by_block(ranks)) for ranks in candidates]
            self._steps = self.steps(candidates, rung, known)

    def step(self, place: int) -> list[tuple[Scores, Spent]]:
        """Evaluate the batch at `place`: the first, then one after the other; the last ones may be left out."""
        return [self._evaluate_one(self._steps[place])] if self._alone else self._evaluate_batch(self._batches[place])

    def retain(self, candidates: Sequence[Ranks]) -> None:
        """Of states kept between calls, keep only those that these candidates' descendants may share."""
        self._store.retain([self.by_block(ranks) for ranks in candidates])

    def steps(self, candidates: Sequence[Ranks], rung: int, known: Sequence[int] | None = None) -> list[Step]:
        """How these candidates are evaluated together."""
        if not self.layers:
            return [Step(index, 0, (), ()) for index in range(len(candidates))]
        return schedule([self.by_block(ranks) for ranks in candidates], self._max_stored(rung), known)

    def by_block(self, ranks: Ranks) -> tuple[Ranks, ...]:
        """Ranks of each block's matrices: equal entries mean an equal block."""
        by_block: list[list[int]] = [[] for _ in range(len(self.blocks))]
        for block, rank in zip(self._block_of, ranks, strict=True):
            by_block[block].append(rank)
        return tuple(map(tuple, by_block))

    def _evaluate_one(self, step: Step) -> tuple[Scores, Spent]:
        rung, stored, (ranks,) = self._rung, self._stored, self._batches[step.index]
        prefix = self.by_block(ranks)
        # Start at the deepest block whose states are at hand. The store is not what it was when the steps were planned:
        # states have come, or had to leave.
        start = max([0, *stored, self._store.deepest(rung, prefix)]) if self.layers else 0
        states = stored[start] if start in stored else self._store.get(rung, prefix[:start])
        anchors = [block for block in self._store.anchors if block > start] if self.layers else []
        (scores,), trace = self._passes((ranks,), start, states, {*step.keep, *anchors})

        # Keep the states that later calls may share, and those that later steps of this call start from.
        for block in anchors:
            self._store.put(rung, prefix[:block], trace.states[block])
        stored |= {block: trace.states[block] for block in step.keep if block > start}
        self.peak_bytes = max(self.peak_bytes, self._store.bytes + sum(map(bytes_of, stored.values())))
        for block in step.drop:
            stored.pop(block, None)
        self.cells[rung] = trace.cells
        return scores, Spent(trace.layer_tokens, trace.cells, trace.head_rows)

    def _evaluate_batch(self, batch: CandidateBatch) -> list[tuple[Scores, Spent]]:
        rung, number = self._rung, self.candidate_batch_size
        missing = number - len(batch)
        batch = [*batch, *[batch[-1]] * missing]
        prefixes = [self.by_block(ranks) for ranks in batch]

        # Start at the deepest block that all of them can start from, with their states one after the other.
        start = self._store.deepest(rung, *prefixes) if self.layers else 0
        states = [self._store.get(rung, prefix[:start]) for prefix in prefixes]
        states = [torch.cat(passes) for passes in zip(*states, strict=True)]
        count = min(self._max_stored(rung) // number, len(self._store.anchors)) if self.layers else 0
        anchors = [block for block in self._store.anchors[len(self._store.anchors) - count :] if block > start]
        found, trace = self._passes(batch, start, states, anchors)

        # Keep each candidate's own part of the states.
        held = sum(bytes_of(trace.states[block]) for block in anchors)
        self.peak_bytes = max(self.peak_bytes, self._store.bytes + held)
        for block in anchors:
            each = [torch.chunk(passes, number) for passes in trace.states.pop(block)]
            for copy, prefix in enumerate(prefixes):
                if (rung, prefix[:block]) not in self._store:
                    self._store.put(rung, prefix[:block], [passes[copy].clone() for passes in each])

        # All cost the same; the places of a short batch count on its first candidate.
        self.cells[rung] = trace.cells // number
        tokens, head_rows = trace.layer_tokens // number, trace.head_rows // number
        spent = [Spent(tokens, self.cells[rung], head_rows)] * number
        spent[0] = replace(spent[0], copies=1 + missing)
        return list(zip(found, spent, strict=True))[: number - missing]

    def _passes(
        self, batch: CandidateBatch, start: int, states: States, keep: Iterable[int]
    ) -> tuple[list[Scores], RunTrace]:
        """The forward passes of one candidate, or of candidate_batch_size; see `BlockwiseRunner.run`."""
        rung, number = self.rungs[self._rung], len(batch)
        with progress.muted():
            if number == 1:
                self.elastic.set_plan(self._plan(batch[0]))
                scores, trace = self.blocks.run(lambda: rung.run(self.model), start, states, keep)
                return [scores], trace
            return self._batch_passes(batch, start, states, keep)

    def _batch_passes(
        self, batch: CandidateBatch, start: int, states: States, keep: Iterable[int]
    ) -> tuple[list[Scores], RunTrace]:
        """The passes of several candidates, in halves where memory does not suffice for all of them."""
        rung, number = self.rungs[self._rung], len(batch)

        def whole() -> tuple[list[Scores], RunTrace]:
            self.elastic.set_batch([self._plan(ranks) for ranks in batch])
            return self.blocks.run(lambda: rung.run_copies(self.model, number), start, states, keep, self._graphs)

        if number <= self._most:
            found = attempt(whole, self.model.device, number > 1)
            if found is not None:
                return found[0]
            self._most = number // 2
            # What was recorded for more candidates would only take memory.
            self._graphs = self._recorded()
        half = number // 2
        copies = [state.unflatten(0, (number, -1)) for state in states]
        one, two = (
            self._batch_passes(batch[own], start, [copy[own].flatten(0, 1) for copy in copies], keep)
            for own in (slice(half), slice(half, number))
        )
        return [*one[0], *two[0]], one[1].joined(two[1])

    def _recorded(self) -> GraphedBlocks | None:
        """What records the blocks' calls; nothing is recorded yet."""
        if self.recorder is None:
            return None
        cells = MAX_WORK // max(self.blocks.parameters, 1)
        return GraphedBlocks(self.recorder(self.model.device), self.blocks.blocks, self.elastic.capture_safe, cells)

    def _plan(self, ranks: Ranks) -> dict[str, int]:
        return {name: rank for name, rank in zip(self.names, ranks, strict=True) if rank}

    def _max_stored(self, rung: int) -> int:
        """How many blocks' states half the memory has room for; the other half is the store's."""
        cells = self.cells.get(rung, 2 * self.rungs[rung].padded_tokens)  # until it is known: never more
        config = self.model.config.get_text_config(decoder=True)
        width = config.hidden_size * self.model.dtype.itemsize
        return self.memory // 2 // max(cells * width, 1)


class DryRun(Evaluator):
    """Does all that an evaluator does but the passes: what they cost in a search that nothing interrupts.

    A search that is resumed has lost the states that it shared, so that what it computes again is no measure.

    Args:
        evaluator: after its `check`; of models whose passes are fixed.
    """

    def __init__(self, evaluator: Evaluator):
        vars(self).update(vars(evaluator))
        self.cells, self.peak_bytes, self._stored = {}, 0, {}
        self._store = StateStore(len(self.blocks), self.memory // 2)
        self._known: dict[int, Spent] = {}

    def spent(self, candidates: Sequence[Ranks], rung: int, alone: bool, known: Spent) -> list[Spent]:
        """What the candidates of one call cost, in their order. `known`: what any candidate on this rung was found to
        cost."""
        self._known[rung] = known
        results = {index: spent for index, _, spent in self.evaluate(candidates, rung, alone)}
        return [results[index] for index in range(len(candidates))]

    def _passes(
        self, batch: CandidateBatch, start: int, states: States, keep: Iterable[int]
    ) -> tuple[list[None], RunTrace]:
        number, known = len(batch), self._known[self._rung]
        cells, bytes_each = known.cells * number, self.blocks.cell_bytes
        kept = {block: [torch.empty(cells, bytes_each, dtype=torch.uint8, device="meta")] for block in keep}
        ran = cells * (len(self.blocks) - start)
        return [None] * number, RunTrace(kept, cells, ran, known.head_rows * number)


def _same(one: Scores, two: Scores) -> bool:
    return np.array_equal(one.score, two.score) and np.allclose(one.loglik, two.loglik, rtol=0, atol=1e-4)
