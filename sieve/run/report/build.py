"""`report.json`: every number that a run measured. Fractions are in [0, 1], sizes in parameters or bytes."""

import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from sieve.evaluation.chance import Chance
from sieve.evaluation.scoring import Scores
from sieve.run.recipe import Recipe
from sieve.run.report.intervals import differences, intervals
from sieve.searchers.objective import ROWS
from sieve.searchers.problem import Candidate
from sieve.searchers.refitted import Refitted
from sieve.searchers.run import SearchResult
from sieve.tasks import Task
from sieve.tasks.stored import Data

VERSION = 1
PACKAGES = ("sieve-pruning", "torch", "triton", "transformers", "safetensors", "numpy", "scipy")


def build_report(
    recipe: Recipe,
    task: Task,
    data: Data,
    result: SearchResult,
    scores: dict[str, dict[str, Scores]],
    size: dict[str, dict[str, int]],
    calibration_tokens: int,
    seconds: dict[str, float],
    ridge: float = math.inf,
    masks: dict[str, Any] | None = None,
    shrinkage: float = 0.0,
    refitted: Refitted | None = None,
    levels: Mapping[str, Chance | None] | None = None,
    notes: Sequence[str] = (),
    truncated: dict[str, int] | None = None,
    left_dense: dict[str, str] | None = None,
    spectra: dict[str, dict[str, int | None]] | None = None,
    layer_seconds: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """The report of a finished run.

    Args:
        task, data: what the model was pruned for, and what its splits were.
        scores: "dense" and "pruned" → split → per-example scores, on the same examples.
        size: "dense" and "pruned" → {"parameters", "bytes"} of the whole model, tied weights counted once.
        calibration_tokens: tokens that were summed.
        seconds: wall-clock time by stage.
        ridge: of the loss-aware projection; infinite (null in the report) if gradients were not used.
        shrinkage: share of a prior in the Gram matrices.
        masks: from `Masks.report`, if weights were masked.
        truncated: split → how many prompts were cut to the model's context.
        left_dense: matrices that no plan could prune → why; asterisks stand for the numbers of all blocks.
        spectra: from `CompressionSpace.spectra`, of the space that the search was in.
        layer_seconds: measured, of the "dense" and the "pruned" layers whose times the search predicted, if it did.
        refitted: the result of the search among refitted plans, if it found one.
        levels: split → scores without a model (`control_levels`), if the task has them.
        notes: what a reader of the numbers must know, one line each.
    """
    levels = levels or {}
    prunable = sum(matrix.parameters for matrix in result.matrices.values())
    kept = result.plan.size(result.matrices)
    judged = {which: {split: scores[which][split] for split in scores["pruned"]} for which in ("dense", "pruned")}
    found = {which: intervals(one) for which, one in judged.items()}
    return {
        # What was pruned, for which task.
        "version": VERSION,
        "model": recipe.model,
        "task": task.name,
        "task_type": task.type,
        "metric": _metric(task),
        "data": data,
        "tolerance": recipe.tolerance,
        # What is left of the model.
        "parameters": {
            "prunable_removed": 1 - kept / prunable,
            "model_removed": 1 - size["pruned"]["parameters"] / size["dense"]["parameters"],
            "prunable": {"dense": prunable, "pruned": kept},
            "model": {which: size[which]["parameters"] for which in ("dense", "pruned")},
        },
        "bytes": {which: size[which]["bytes"] for which in ("dense", "pruned")},
        # How well both models do, split by split, and what is reached without a model.
        "accuracy": {
            **{which: values["accuracy"] for which, values in found.items()},
            "chance": {split: level and level.chance for split, level in levels.items()},
            "majority": {split: level and level.majority for split, level in levels.items()},
            "ngrams": {split: level and level.ngrams for split, level in levels.items()},
        },
        "loglik": {which: values["loglik"] for which, values in found.items()},
        "difference": differences(judged["pruned"], judged["dense"]),
        # What to know before trusting the numbers.
        "notes": list(notes),
        "resolution": {
            "standard_error": result.resolution.standard_error,
            "tolerance": result.resolution.tolerance,
            "sufficient": result.resolution.sufficient,
            "needed_n": result.resolution.needed_n,
        },
        # How the result was found.
        "calibration": {
            "tokens": calibration_tokens,
            "method": recipe.method,
            "ridge": ridge if math.isfinite(ridge) else None,
            "shrinkage": shrinkage,
            "refit": recipe.refit,
        },
        "truncated": truncated or {},
        "seconds": {stage: round(value, 3) for stage, value in seconds.items()},
        "kept": result.plan.kept(result.matrices),
        "left_dense": left_dense or {},
        "spectra": spectra,
        "pivoted": result.plan.pivoted,
        "masks": masks,
        "search": {
            "search": recipe.searcher,
            **result.cost,
            "seconds": round(seconds["search"], 3),
            "surrogate_rank_correlation": result.rank_correlation,
            "validation_attempts": result.validation_attempts,
            "margin": result.margin,
            "layer_seconds": result.layer_seconds
            and {"rows": ROWS, "predicted": result.layer_seconds, "measured": layer_seconds},
            "evaluated": _candidates(result.evaluated, result),
        },
        "refit": refitted
        and {
            "validation_attempts": refitted.validation_attempts,
            "evaluated": _candidates(refitted.evaluated, result),
        },
        # None for a uniform search: it varies all matrices together, so it finds no bottlenecks.
        "bottlenecks": None if result.bottlenecks is None else [asdict(one) for one in result.bottlenecks],
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
    }


def _metric(task: Task) -> str:
    """What "accuracy" is in this report."""
    if task.type == "generation":
        return task.to_dict()["metric"]
    return "accuracy" if task.type == "multiple_choice" else "token_probability"


def _candidates(candidates: Sequence[Candidate], result: SearchResult) -> list[dict[str, float | bool]]:
    return [
        {
            "prunable_removed": candidate.plan.prunable_removed(result.matrices),
            "accuracy": candidate.scores.accuracy,
            "loglik": candidate.scores.mean_loglik,
            "layer_tokens": candidate.layer_tokens,
            "uniform": candidate.uniform,
        }
        for candidate in candidates
    ]


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
