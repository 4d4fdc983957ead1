"""The main job: from a recipe to a folder that holds the pruned model."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from sieve import progress
from sieve.apply import apply_
from sieve.calibration import calibrate
from sieve.checkpoint import model_bytes, save
from sieve.files import cache_dir, require_new
from sieve.fitness import evaluate
from sieve.matrices import prunable
from sieve.models import load_model
from sieve.projections import project
from sieve.recipe import Recipe
from sieve.report import build_report
from sieve.searchers import run_search
from sieve.searchers.problem import within
from sieve.tasks import load_task
from sieve.unfinished import Unfinished


def prune(
    recipe: Recipe, output: str | Path, statistics: str | Path | None = None, resume: bool = False
) -> dict[str, Any]:
    """Calibrate, project, search, confirm, test and save; returns the report that `output/report.json` holds.

    Args:
        recipe: what to do; checked before any work starts.
        output: folder to make; it must not exist, and appears only when complete.
        statistics: file or folder that keeps the calibration (see `sieve.calibrate`).
        resume: go on with the search that was interrupted on its way to `output`.

    Raises: every error of the stages; nothing is left behind then but the calibration and, of a search that was
        interrupted or ran out of disk, what it needs to be resumed.
    """
    recipe.check()
    output = require_new(output)
    unfinished = Unfinished(output, recipe, resume)
    stages = Stages()
    with stages("load"):
        task = load_task(recipe.task)
        splits = task.splits(recipe.seed)
        model, tokenizer = load_model(recipe.model, recipe.dtype, recipe.device)
        prunable(model)
    with stages("calibrate"):
        measured = calibrate(
            model, tokenizer, task, recipe.calibration_tokens, recipe.method, recipe.seed, path=statistics
        )
    with stages("project"):
        factors = project(model, measured, recipe.method, recipe.pivot)
    with stages("search"), unfinished.search() as journal:
        result = run_search(
            model,
            tokenizer,
            factors,
            task,
            recipe.tolerance,
            recipe.search,
            confident=recipe.confident,
            rank_multiple=recipe.rank_multiple,
            seed=recipe.seed,
            journal=journal,
            **asdict(recipe.options()),
        )
    with stages("test"):
        scores = {"dense": dict(result.dense), "pruned": dict(result.pruned)}
        size = {"dense": _size(model)}
        scores["dense"]["test"] = evaluate(model, tokenizer, task, splits["test"])
        apply_(model, factors, result.plan)
        size["pruned"] = _size(model)
        # Pivoted, the stored weights are rounded otherwise than the slices that were searched: report what is stored.
        stored = ("fitness", "validation", "test") if result.plan.pivoted else ("test",)
        scores["pruned"] |= {split: evaluate(model, tokenizer, task, splits[split]) for split in stored}
        validation = (scores[which]["validation"] for which in ("pruned", "dense"))
        if not within(*validation, recipe.tolerance, recipe.confident):
            progress.say("  [yellow]note:[/] rounding the stored weights brought validation below the tolerance")
    report = build_report(recipe, result, scores, size, measured.tokens, stages.seconds, factors.ridge)
    save(model, tokenizer, output, report=report, recipe=recipe.to_dict())
    unfinished.remove()
    return report


def calibration_cache() -> Path:
    """Where the command line keeps the last calibration, so that a run begun again need not repeat it."""
    return cache_dir() / "calibration"


class Stages:
    """Names and times the stages of a run."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        progress.say(f"[bold]{name}[/]")
        started = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - started
        progress.say(f"  {self.seconds[name]:.1f} s")


def _size(model: PreTrainedModel) -> dict[str, int]:
    return {"parameters": sum(parameter.numel() for parameter in model.parameters()), "bytes": model_bytes(model)}
