"""The calibrations of a run, the task's and general text's, what they are of, and where they are kept."""

from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sieve.calibration.collect import calibrate
from sieve.calibration.statistics import Statistics
from sieve.compression.low_rank.share_inputs import share_inputs_
from sieve.models.prunable_model import PrunableModel
from sieve.registry import method_named
from sieve.run.recipe import Recipe
from sieve.tasks import Task
from sieve.tasks.general import GENERAL, general_text
from sieve.utils.files import cache_folder


def calibration_cache() -> Path | None:
    """Where the command line keeps the last calibration, so that the next run need not repeat it."""
    return cache_folder("calibration")


def prunable_of_(recipe: Recipe, model: PreTrainedModel) -> PrunableModel:
    """The matrices that the recipe prunes: with `shared_input`, those that read one input become one, in place."""
    if recipe.shared_input:
        # A method that removes hidden units needs each matrix of an MLP by itself.
        share_inputs_(model, mlps=not method_named(recipe.method).channels, required=False)
    return PrunableModel(model)


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
