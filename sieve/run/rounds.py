"""Prune, heal, prune again: a healed model is made smaller as long as it keeps the tolerance once it is healed."""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sieve.calibration.collect import calibrate
from sieve.calibration.text import Sample
from sieve.checkpoint.folder import save
from sieve.checkpoint.size import model_bytes, model_parameters
from sieve.compression.apply import apply_
from sieve.compression.low_rank.expand import at_most, expand_
from sieve.errors import UnreachableSize
from sieve.evaluation.scoring import Scores, concatenated
from sieve.healing.checkpoint import Checkpoint
from sieve.healing.heal import heal_
from sieve.healing.teacher import Lessons
from sieve.models.loading import load_model
from sieve.models.prunable_model import PrunableModel
from sieve.run.compressed import compressed
from sieve.run.measured import Measured
from sieve.run.recipe import Recipe
from sieve.run.report.intervals import intervals
from sieve.run.resume import ResumableRun
from sieve.searchers.algorithms.base import searcher_named
from sieve.searchers.problem import within
from sieve.searchers.run import SearchResult, run_search
from sieve.searchers.signal import DECIDING
from sieve.tasks import Task
from sieve.utils import progress
from sieve.utils.files import write_json

# Each round keeps this fraction of the prunable parameters of the last one within the tolerance …
SMALLER = 0.75
# … until one is not; then sizes in between are tried, as long as they are smaller than that by this factor.
NEARLY = 0.95


class Rounds:
    """The rounds after the first, each from the smallest healed model within the tolerance so far.

    After a round that is not within the tolerance, the next ones try sizes between the two.

    Each round finds statistics, sensitivities and ranks anew. A finished round is kept in the folder of the
    unfinished run, with its model; an interrupted one continues with its own journal and checkpoint.

    Args:
        result: of the first round's search; its margin holds for all rounds.
        lessons: of the dense model, or the labels: the same in every round.
        key: what the run depends on.
    """

    def __init__(
        self,
        recipe: Recipe,
        task: Task,
        measured: Measured,
        result: SearchResult,
        lessons: Lessons,
        unfinished: ResumableRun,
        key: str,
        generated: Sequence[Sample] = (),
        trust_remote_code: bool = False,
    ):
        self._recipe, self._task, self._measured, self._result = recipe, task, measured, result
        self._lessons, self._unfinished, self._key, self._trust = lessons, unfinished, key, trust_remote_code
        self._generated = generated
        self._folder = unfinished.stage("rounds")

    def run(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        first: Mapping[str, Any],
        scores: Mapping[str, Scores],
    ) -> tuple[PreTrainedModel, list[dict[str, Any]]]:
        """The model of the last round that kept the tolerance, and the records of all rounds.

        Args:
            model: pruned and healed once, or only pruned where that healing broke the tolerance.
            first: "kept" (matrix → fraction), "healing" (`Healing.report`), "seconds".
            scores: the model's, on the splits that decide.
        """
        total, kept = self._total(), self._result.plan.size(self._result.matrices)
        done = [self._record(1, kept / total, scores, model) | dict(first)]
        if not done[0]["held"]:
            # Only where a size was asked for: else a healing that breaks the tolerance is undone.
            progress.note("the healed model is not within the tolerance: no further round")
            return model, done
        self._keep(1, model, tokenizer)
        while len(done) < self._recipe.rounds and (share := _next_share(done)) is not None:
            number = len(done) + 1
            try:
                done.append(self._known(number) or self._round(number, _last_held(done), share))
            except UnreachableSize:
                progress.note(f"no plan keeps {share:.1%} of the prunable parameters: no further round")
                break
            verdict = "within the tolerance" if done[-1]["held"] else "not within the tolerance"
            progress.say(f"  round {number}: {1 - done[-1]['kept_share']:.1%} removed and healed: {verdict}")
        last = _last_held(done)
        if last > 1:
            model, _ = self._loaded(last)
        return model, done

    def _round(self, number: int, start: int, share: float) -> dict[str, Any]:
        """The record of a round from the healed model of round `start`, at this share of the prunable parameters."""
        recipe, started = self._recipe, time.perf_counter()
        progress.say(f"round {number}: {1 - share:.1%} removed", style="bold")
        # Start from a healed model, with its pairs as dense matrices.
        model, tokenizer = self._loaded(start)
        ranks = expand_(model)
        prunable = PrunableModel(model)
        # Calibrate, compress and search anew, for a given size.
        statistics = calibrate(
            prunable, tokenizer, self._task, recipe.calibration_tokens, recipe.method, recipe.seed,
            path=self._folder / f"calibration-{number}.safetensors", generated=self._generated,
        )  # fmt: skip
        factors = compressed(recipe, prunable, statistics)
        # Reports name the bottlenecks of the first round's plan.
        options = replace(recipe.options(), kept=share)
        if searcher_named(recipe.searcher).per_matrix:
            options = replace(options, bottlenecks=0)
        result = run_search(
            prunable, tokenizer, factors, self._task, recipe.tolerance, recipe.searcher,
            rank_multiple=recipe.rank_multiple, seed=recipe.seed, journal=self._folder / f"journal-{number}.txt",
            dense=self._result.dense, allow_no_signal=recipe.allow_no_signal, generated=self._generated,
            **asdict(options), **asdict(recipe.engine),
        )  # fmt: skip
        # No matrix may get a higher rank than it had: the higher ranks would be empty.
        plan = at_most(result.plan, ranks)
        apply_(model, factors, plan)
        checkpoint = Checkpoint(self._unfinished.stage(f"heal {number}"), f"{self._key} {number}")
        healing = heal_(model, self._lessons, recipe.heal_steps, recipe.seed, recipe.healing.kind, checkpoint)
        # Write the record last: with it the round counts as done when the run is resumed.
        scores = self._scores(number, model, tokenizer)
        record = self._record(number, plan.size(result.matrices) / self._total(), scores, model)
        record |= {
            "kept": plan.kept(result.matrices),
            "healing": healing.report(),
            "before": intervals(result.pruned),
            "seconds": round(time.perf_counter() - started, 3),
        }
        if record["held"]:
            self._keep(number, model, tokenizer)
        write_json(self._place(number).with_suffix(".json"), {"key": self._key, "record": record})
        return record

    def _record(
        self, number: int, share: float, scores: Mapping[str, Scores], model: PreTrainedModel
    ) -> dict[str, Any]:
        recipe, result = self._recipe, self._result
        held = keeps_tolerance(recipe, result, scores)
        return {
            "round": number,
            "kept_share": share,
            "prunable_removed": 1 - share,
            "parameters": model_parameters(model),
            "bytes": model_bytes(model),
            "held": held,
            "after": intervals(scores),
        }

    def _scores(self, number: int, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, Scores]:
        """Scores on the splits that decide: the test split is not used here."""
        return {split: self._measured.on(split, f"round {number}", model, tokenizer) for split in DECIDING}

    def _total(self) -> int:
        return sum(matrix.parameters for matrix in self._result.matrices.values())

    def _place(self, number: int) -> Path:
        return self._folder / f"round-{number}"

    def _keep(self, number: int, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        # Remove what a killed process may have left.
        shutil.rmtree(self._place(number), ignore_errors=True)
        save(model, tokenizer, self._place(number))

    def _loaded(self, number: int) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        return load_model(str(self._place(number)), "auto", self._recipe.device, self._trust)

    def _known(self, number: int) -> dict[str, Any] | None:
        """The record of this round, if an earlier process finished it."""
        path = self._place(number).with_suffix(".json")
        if not path.is_file():
            return None
        found = json.loads(path.read_text(encoding="utf-8"))
        return found["record"] if found["key"] == self._key else None


def _last_held(done: Sequence[Mapping[str, Any]]) -> int:
    """The number of the last round within the tolerance: the smallest one, as each starts from the one before."""
    return max(number for number, one in enumerate(done, 1) if one["held"])


def _next_share(done: Sequence[Mapping[str, Any]]) -> float | None:
    """The share of the prunable parameters that the next round keeps; None: the sizes that are left are too near."""
    held = done[_last_held(done) - 1]["kept_share"]
    # Each round that failed is larger than those that failed before.
    failed = [one["kept_share"] for one in done if not one["held"]]
    if not failed:
        return SMALLER * held
    share = math.sqrt(held * failed[-1])
    return share if share <= NEARLY * held else None


def keeps_tolerance(recipe: Recipe, result: SearchResult, scores: Mapping[str, Scores]) -> bool:
    """Whether a healed model is within the tolerance, on the splits that decide together.

    A search has many candidates, some of which a split favours by chance, so it asks each split. A healed model is one,
    and both splits together tell most about it.
    """
    found, dense = (concatenated([some[split] for split in DECIDING]) for some in (scores, result.dense))
    return within(found, dense, recipe.tolerance, recipe.confident, result.margin)
