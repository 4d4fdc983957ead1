"""Candidates on rungs of the examples, in this process.

What is asked together is walked as a tree of block prefixes (`walk`), each evaluation beginning at the first block that
differs (`blocks`); states that later calls may share are kept (`store`). The passes are the same whatever ran before,
so a candidate's scores are the same bits in whatever order it is evaluated.

On a GPU, several candidates go through one forward pass: a team. A team is always as many, the last candidate standing
in for those that are missing, so that products have the same shapes whoever is in it, and blocks can be recorded
(`graphs`).
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
from sieve.models.loading import evaluating
from sieve.models.matrix import Matrix
from sieve.searchers.engine.config import EngineConfig
from sieve.searchers.engine.cost import Spent
from sieve.searchers.engine.cuda_graphs import WORK, Graphs, Recorder
from sieve.searchers.engine.prefix_cache import StateStore, size_of
from sieve.searchers.engine.prefix_tree import Step, order, walk
from sieve.utils import progress

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from sieve.compression.low_rank.elastic import ElasticModel

Ranks = tuple[int, ...]  # per matrix, in the order of the blocks; 0 is dense
CandidateBatch = Sequence[Ranks]  # candidates that are evaluated together: one, or candidate_batch_size
Result = tuple[int, Scores, Spent]  # index of the candidate and what came of it


class Evaluator:
    """Runs a model at any ranks of its matrices.

    Args:
        model: with layers that `elastic` turns.
        elastic: what turns the model to a plan, or to several; from `CompressionSpace.elastic`.
        matrices: of the model; what ranks are of, in the order of `names`.
        parts: the rungs of the examples, made ready.
        config: the engine's switches, of which it uses `layers` and `memory`.
        candidate_batch_size: how many candidates are one batch, where several are asked for and the parts can do it.
        recorder: makes, for the model's device, what records the passes of teams; None: they are not.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        elastic: ElasticModel,
        matrices: Mapping[str, Matrix],
        parts: Sequence[Prepared],
        config: EngineConfig,
        candidate_batch_size: int = 1,
        recorder: Callable[[torch.device], Recorder] | None = None,
    ):
        self.model, self.elastic, self.matrices = model, elastic, matrices
        self.config, self.memory = config, config.memory
        able = hasattr(elastic, "set_batch") and all(part.run_copies for part in parts)
        self.candidate_batch_size = candidate_batch_size if able else 1
        self.recorder = recorder if self.candidate_batch_size > 1 else None
        self.parts = list(parts)
        ordered = sorted(matrices.values(), key=lambda matrix: matrix.block)
        self.names = [matrix.name for matrix in ordered]
        self.blocks = BlockwiseRunner(model)
        self.layers = config.layers and all(part.fixed_passes for part in parts)
        self.cells: dict[int, int] = {}  # per slice, cells of one block, once they are known
        self.peak_bytes = 0  # of stored states
        self._block_of = [matrix.block for matrix in ordered]
        self._store = StateStore(len(self.blocks), config.memory // 2)
        self._part, self._teams, self._steps, self._alone = 0, [], [], True
        self._stored: dict[int, States] = {}  # of the walk that is under way
        self._graphs: Graphs | None = None  # while running

    @contextmanager
    def running(self) -> Iterator[Evaluator]:
        """Inside the block candidates can be evaluated."""
        with evaluating(self.model), torch.inference_mode(), self.blocks:
            if self.recorder is not None:
                cells = WORK // max(self.blocks.parameters, 1)
                self._graphs = Graphs(
                    self.recorder(self.model.device), self.blocks.blocks, self.elastic.capture_safe, cells
                )
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
        with progress.shown(False):
            self.layers = self.blocks.can_start_midway(lambda: self.parts[0].run(self.model), _same)
        return self.blocks.checked

    def evaluate(self, candidates: Sequence[Ranks], part: int, alone: bool = True) -> Iterator[Result]:
        """Results on slice `part`, in the order of the walk. No two candidates are equal. `alone`: see `teams`."""
        teams = self.teams(candidates, alone)
        self.begin([[candidates[index] for index in team] for team in teams], part, alone)
        for place, team in enumerate(teams):
            for index, (scores, spent) in zip(team, self.step(place), strict=True):
                yield index, scores, spent

    def teams(self, candidates: Sequence[Ranks], alone: bool) -> list[list[int]]:
        """Who is evaluated with whom, by index, in the order of the tree of prefixes; each by itself if `alone`."""
        ordered = order([self.by_block(ranks) for ranks in candidates])
        number = 1 if alone else self.candidate_batch_size
        return [ordered[first : first + number] for first in range(0, len(ordered), number)]

    def begin(self, teams: Sequence[CandidateBatch], part: int, alone: bool) -> None:
        """Plan a walk, in the place of the last one; teams as `teams` orders them."""
        self._part, self._teams, self._alone, self._stored = part, teams, alone or self.candidate_batch_size == 1, {}
        if self._alone:
            candidates = [ranks for (ranks,) in teams]
            known = [self._store.deepest(part, self.by_block(ranks)) for ranks in candidates]
            self._steps = self.steps(candidates, part, known)

    def step(self, place: int) -> list[tuple[Scores, Spent]]:
        """What comes of the team at `place`: the first, then one after the other; the last ones may be left out."""
        return [self._single(self._steps[place])] if self._alone else self._several(self._teams[place])

    def retain(self, candidates: Sequence[Ranks]) -> None:
        """Of states kept between calls, only those that these candidates' descendants may share are still of use."""
        self._store.retain([self.by_block(ranks) for ranks in candidates])

    def steps(self, candidates: Sequence[Ranks], part: int, known: Sequence[int] | None = None) -> list[Step]:
        """How these candidates are evaluated together."""
        if not self.layers:
            return [Step(index, 0, (), ()) for index in range(len(candidates))]
        return walk([self.by_block(ranks) for ranks in candidates], self._most(part), known)

    def by_block(self, ranks: Ranks) -> tuple[Ranks, ...]:
        """Ranks of each block's matrices: equal entries mean an equal block."""
        by_block: list[list[int]] = [[] for _ in range(len(self.blocks))]
        for block, rank in zip(self._block_of, ranks, strict=True):
            by_block[block].append(rank)
        return tuple(map(tuple, by_block))

    def _single(self, step: Step) -> tuple[Scores, Spent]:
        part, stored, (ranks,) = self._part, self._stored, self._teams[step.index]
        prefix = self.by_block(ranks)
        # The store is not what it was when the walk was planned: states have come, or had to leave.
        start = max([0, *stored, self._store.deepest(part, prefix)]) if self.layers else 0
        states = stored[start] if start in stored else self._store.get(part, prefix[:start])
        anchors = [block for block in self._store.anchors if block > start] if self.layers else []
        (scores,), run = self._passes((ranks,), start, states, {*step.keep, *anchors})
        for block in anchors:
            self._store.put(part, prefix[:block], run.states[block])
        stored |= {block: run.states[block] for block in step.keep if block > start}
        self.peak_bytes = max(self.peak_bytes, self._store.bytes + sum(map(size_of, stored.values())))
        for block in step.drop:
            stored.pop(block, None)
        self.cells[part] = run.cells
        return scores, Spent(run.layer_tokens, run.cells, run.head_rows)

    def _several(self, team: CandidateBatch) -> list[tuple[Scores, Spent]]:
        part, number = self._part, self.candidate_batch_size
        missing = number - len(team)
        team = [*team, *[team[-1]] * missing]
        prefixes = [self.by_block(ranks) for ranks in team]
        start = self._store.deepest(part, *prefixes) if self.layers else 0
        states = [self._store.get(part, prefix[:start]) for prefix in prefixes]
        states = [torch.cat(passes) for passes in zip(*states, strict=True)]
        room = min(self._most(part) // number, len(self._store.anchors)) if self.layers else 0
        anchors = [block for block in self._store.anchors[len(self._store.anchors) - room :] if block > start]
        found, run = self._passes(team, start, states, anchors)
        held = sum(size_of(run.states[block]) for block in anchors)
        self.peak_bytes = max(self.peak_bytes, self._store.bytes + held)
        for block in anchors:
            each = [torch.chunk(passes, number) for passes in run.states.pop(block)]
            for copy, prefix in enumerate(prefixes):
                if (part, prefix[:block]) not in self._store:
                    self._store.put(part, prefix[:block], [passes[copy].clone() for passes in each])
        self.cells[part] = run.cells // number
        tokens, head_rows = run.layer_tokens // number, run.head_rows // number
        spent = [Spent(tokens, self.cells[part], head_rows)] * number
        spent[0] = replace(spent[0], copies=1 + missing)
        return list(zip(found, spent, strict=True))[: number - missing]

    def _passes(
        self, team: CandidateBatch, start: int, states: States, keep: Iterable[int]
    ) -> tuple[list[Scores], RunTrace]:
        """The forward passes of a candidate alone, or of candidate_batch_size; see `BlockwiseRunner.run`."""
        part, number = self.parts[self._part], len(team)
        with progress.shown(False):
            if number == 1:
                self.elastic.set_plan(self._plan(team[0]))
                scores, run = self.blocks.run(lambda: part.run(self.model), start, states, keep)
                return [scores], run
            self.elastic.set_batch([self._plan(ranks) for ranks in team])
            return self.blocks.run(lambda: part.run_copies(self.model, number), start, states, keep, self._graphs)

    def _plan(self, ranks: Ranks) -> dict[str, int]:
        return {name: rank for name, rank in zip(self.names, ranks, strict=True) if rank}

    def _most(self, part: int) -> int:
        """How many blocks' states half the memory has room for; the other half is the store's."""
        cells = self.cells.get(part, 2 * self.parts[part].padded_tokens)  # until it is known: never more
        config = self.model.config.get_text_config(decoder=True)
        width = config.hidden_size * self.model.dtype.itemsize
        return self.memory // 2 // max(cells * width, 1)


class Rehearsal(Evaluator):
    """Goes through all that an evaluator does but the passes: what they cost in a search that nothing interrupts.

    A search that is resumed has lost the states that it shared, so that what it does anew is no measure.

    Args:
        evaluator: after its `check`; of models whose passes are fixed.
    """

    def __init__(self, evaluator: Evaluator):
        vars(self).update(vars(evaluator))
        self.cells, self.peak_bytes, self._stored = {}, 0, {}
        self._store = StateStore(len(self.blocks), self.memory // 2)
        self._known: dict[int, Spent] = {}

    def spent(self, candidates: Sequence[Ranks], part: int, alone: bool, known: Spent) -> list[Spent]:
        """What the candidates of one call cost, in their order. `known`: what any of this part was found to cost."""
        self._known[part] = known
        results = {index: spent for index, _, spent in self.evaluate(candidates, part, alone)}
        return [results[index] for index in range(len(candidates))]

    def _passes(
        self, team: CandidateBatch, start: int, states: States, keep: Iterable[int]
    ) -> tuple[list[None], RunTrace]:
        number, known = len(team), self._known[self._part]
        cells, bytes_each = known.cells * number, self.blocks.cell_bytes
        kept = {block: [torch.empty(cells, bytes_each, dtype=torch.uint8, device="meta")] for block in keep}
        ran = cells * (len(self.blocks) - start)
        return [None] * number, RunTrace(kept, cells, ran, known.head_rows * number)


def _same(one: Scores, two: Scores) -> bool:
    return np.array_equal(one.score, two.score) and np.allclose(one.loglik, two.loglik, rtol=0, atol=1e-4)
