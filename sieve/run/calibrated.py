"""The calibrations of a run, the task's and general text's, and where they are kept."""

from pathlib import Path

from transformers import PreTrainedTokenizerBase

from sieve.calibration.collect import calibrate
from sieve.calibration.statistics import Statistics
from sieve.models.prunable_model import PrunableModel
from sieve.run.recipe import Recipe
from sieve.tasks import Task
from sieve.tasks.general import GENERAL, general_text
from sieve.utils.files import cache_folder


def calibration_cache() -> Path | None:
    """Where the command line keeps the last calibration, so that the next run need not repeat it."""
    return cache_folder("calibration")


def task_statistics(
    recipe: Recipe, model: PrunableModel, tokenizer: PreTrainedTokenizerBase, task: Task, path: str | Path | None
) -> Statistics:
    """The statistics that the recipe asks for, kept in `path`."""
    tokens, generated = recipe.calibration_tokens, recipe.generated_tokens
    return calibrate(model, tokenizer, task, tokens, recipe.method, recipe.seed, path=path, generated=generated)


def general_statistics(
    recipe: Recipe, model: PrunableModel, tokenizer: PreTrainedTokenizerBase, path: str | Path | None
) -> Statistics:
    """The same statistics of general text, in a file of its own, because each file keeps one calibration."""
    if path is not None:
        path = Path(path)
        path = path.with_name(f"{path.stem}.general{path.suffix}") if path.suffix else path / GENERAL
    text = general_text(recipe.general)
    return calibrate(model, tokenizer, text, recipe.calibration_tokens, recipe.method, recipe.seed, path=path)
