"""Scores of many candidates, with as little work as the result allows.

The examples are cut into rungs; a candidate is evaluated on one rung at a time, so that it can be ruled out early.
What is finished is kept in memory and, if there is one, in the journal; what is not is evaluated in this process
(`local`) or on workers (`ray_workers`). No shortcut changes a bit of a rung's scores: the passes are the same whatever
ran before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from sieve.errors import InputError
from sieve.evaluation.scoring import Prepared, Scores, concatenated
from sieve.models.matrix import DENSE, Matrix
from sieve.searchers.engine.config import EngineConfig
from sieve.searchers.engine.cost import Cost, Spent
from sieve.searchers.engine.cuda_graphs import CudaRecorder
from sieve.searchers.engine.local import DryRun, Evaluator, Ranks
from sieve.searchers.engine.ray_workers import WorkerPool
from sieve.utils import progress

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from sieve.compression.low_rank.elastic import ElasticModel
    from sieve.searchers.engine.cuda_graphs import Recorder
    from sieve.searchers.engine.journal import Journal

CANDIDATE_BATCH_SIZE = 8  # candidates of one forward pass on a GPU


def split_into_rungs(examples: Sequence, number: int = 4, least: int = 16) -> list[Sequence]:
    """Cut examples so that each rung is as long as all before it: 1/8, 1/8, 1/4, 1/2 for `number` 4.

    Fewer rungs where the first would have less than `least` examples.
    """
    while number > 1 and len(examples) >> (number - 1) < least:
        number -= 1
    borders = [0, *(len(examples) >> (number - 1 - rung) for rung in range(number))]
    return [examples[first:end] for first, end in pairwise(borders)]


def batching(device: torch.device) -> dict[str, Any]:
    """How many candidates go through one forward pass on this device, and what records such passes.

    A CPU has its processors busy with one candidate.
    """
    return {
        "candidate_batch_size": 1 if device.type == "cpu" else CANDIDATE_BATCH_SIZE,
        "recorder": CudaRecorder if device.type == "cuda" else None,
    }


class Engine:
    """Evaluates plans on rungs of examples. A context manager: inside it the model is in eval mode and prepared.

    Args:
        elastic: sets the model to a plan, or to several.
        matrices: of the model; the plan decides nothing else.
        rungs: of the examples, made ready.
        config: the engine's switches; `memory` is that of all workers together.
        journal: open, or None.
        candidate_batch_size: how many candidates go through one forward pass.
        recorder: makes what records such passes; see `Evaluator`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        elastic: ElasticModel,
        matrices: Mapping[str, Matrix],
        rungs: Sequence[Prepared],
        config: EngineConfig,
        *,
        journal: Journal | None = None,
        candidate_batch_size: int = 1,
        recorder: Callable[[torch.device], Recorder] | None = None,
    ):
        self._evaluator = Evaluator(model, elastic, matrices, rungs, config, candidate_batch_size, recorder)
        self._executor, self._dry_run = self._evaluator, None
        self._names, self._workers = self._evaluator.names, config.workers
        self._journal = journal
        self._records: dict[str, tuple[Scores, Spent]] = {}  # what is known, from this process or an earlier one
        self._charged: set[str] = set()  # keys that this process asked for
        # Layer-tokens of what was asked for, each call for itself: the same whatever was interrupted in between.
        self.nominal = 0
        self.blocks = self._evaluator.blocks
        head, block = model.get_output_embeddings(), self.blocks.parameters
        self.cost = Cost(
            len(self.blocks),
            head.weight.numel() / block if head is not None and block else 0.0,
            [rung.plain_tokens for rung in rungs],
            [rung.padded_tokens for rung in rungs],
        )
        if journal is not None:
            evaluations = {key: record for key, record in journal.records.items() if "score" in record}
            self._records = {key: _from_record(record) for key, record in evaluations.items()}

    @contextmanager
    def running(self) -> Iterator[Engine]:
        """Inside the block plans can be scored."""
        wanted = self._evaluator.layers
        with self._evaluator.running():
            self.cost.probed(self._evaluator.check())
        if wanted and not self.layers:
            progress.note("this model's blocks cannot be run one by one: no states are shared")
        with ExitStack() as stack:
            if self._workers is None and all(rung.fixed_passes for rung in self._evaluator.rungs):
                self._dry_run = DryRun(self._evaluator)
            if self._workers is not None:
                self._executor = stack.enter_context(WorkerPool(self._evaluator, self._workers))
            stack.enter_context(self._evaluator.running())
            yield self

    @property
    def layers(self) -> bool:
        """Whether candidates share the states of blocks that they have in common."""
        return self._evaluator.layers

    @property
    def peak_bytes(self) -> int:
        """The most that stored states took, of all workers together."""
        return (self._dry_run or self._executor).peak_bytes

    def __len__(self) -> int:
        """How many rungs there are."""
        return len(self._evaluator.rungs)

    def ranks(self, plan: Mapping[str, int | str]) -> Ranks:
        """The plan as numbers; what tells candidates apart.

        Raises: InputError for a plan that names a matrix outside the search.
        """
        unknown = set(plan) - set(self._names)
        if unknown:
            raise InputError(f"the plan names {min(unknown)!r}, which this search leaves alone")
        return tuple(0 if plan.get(name, DENSE) == DENSE else plan[name] for name in self._names)

    def full(self, plan: Mapping[str, int | str]) -> Scores:
        """Scores on all rungs."""
        return concatenated([self.scores([plan], rung)[0] for rung in range(len(self))])

    def scores(self, plans: Sequence[Mapping[str, int | str]], rung: int) -> list[Scores]:
        """Scores of each plan on a rung, in the order of the plans. Nothing is evaluated twice."""
        keys = [self._key(plan, rung) for plan in plans]
        # Fresh is what this process asks for the first time; of that the journal may know some.
        fresh = {key: plan for key, plan in zip(keys, plans, strict=True) if key not in self._charged}
        missing = {key: plan for key, plan in fresh.items() if key not in self._records}
        for key in keys:
            if key not in fresh:
                self.cost.asked_again(rung)
        alone = len(plans) == 1  # by what is asked: what is known depends on interruptions
        self._evaluate(missing, rung, alone)
        self._charge(fresh, rung, alone)
        if fresh:
            self._evaluator.cells[rung] = self._records[keys[0]][1].cells
            steps = self._evaluator.steps([self.ranks(plan) for plan in fresh.values()], rung)
            self.nominal += self._evaluator.cells[rung] * sum(len(self.blocks) - step.start for step in steps)
        return [self._records[key][0] for key in keys]

    def retain(self, plans: Sequence[Mapping[str, int | str]]) -> None:
        """Of states kept between calls, keep only those that these plans' descendants may share."""
        for keeper in filter(None, (self._executor, self._dry_run)):
            keeper.retain([self.ranks(plan) for plan in plans])

    def _evaluate(self, plans: Mapping[str, Mapping[str, int | str]], rung: int, alone: bool) -> None:
        keys, candidates = list(plans), [self.ranks(plan) for plan in plans.values()]
        for index, scores, spent in self._executor.evaluate(candidates, rung, alone):
            self._records[keys[index]] = (scores, spent)
            if self._journal is not None:
                self._journal.add(keys[index], _to_record(scores, spent))

    def _charge(self, plans: Mapping[str, Mapping[str, int | str]], rung: int, alone: bool) -> None:
        """Count what was asked for first in this call: as if nothing had been interrupted, where that can be told."""
        candidates, records = [self.ranks(plan) for plan in plans.values()], [self._records[key] for key in plans]
        spent = [one for _, one in records]
        if self._dry_run is not None and spent:
            spent = self._dry_run.spent(candidates, rung, alone, spent[0])
        for ranks, one, (scores, _) in zip(candidates, spent, records, strict=True):
            self.cost.evaluated(ranks, rung, one, scores.written)
        self._charged.update(plans)

    def _key(self, plan: Mapping[str, int | str], rung: int) -> str:
        return f"{rung}:{','.join(map(str, self.ranks(plan)))}"


def _to_record(scores: Scores, spent: Spent) -> dict[str, Any]:
    return {
        "score": scores.score.tolist(),
        "loglik": scores.loglik.tolist(),
        "contrast": None if scores.choice_logprob is None else scores.choice_logprob.tolist(),
        "tokens": scores.tokens,
        "written": scores.written,
        "cost": asdict(spent),
    }


def _from_record(record: Mapping[str, Any]) -> tuple[Scores, Spent]:
    choice_logprob = None if record["contrast"] is None else np.array(record["contrast"])
    arrays = np.array(record["score"]), np.array(record["loglik"])
    scores = Scores(*arrays, record["tokens"], choice_logprob, record.get("written", 0))
    return scores, Spent(**record["cost"])
