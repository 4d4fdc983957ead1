"""`sieve calibrate`: the calibration pass alone."""

from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any

from sieve.commands.derive import command
from sieve.commands.options import Shown, Trust
from sieve.commands.output import print_json, say_saved
from sieve.models.config import find_model
from sieve.run.presets import with_preset
from sieve.run.recipe import Recipe
from sieve.tasks import load_task
from sieve.utils import progress
from sieve.utils.files import require_new
from sieve.utils.options import option
from sieve.utils.terminal import console


@dataclass(frozen=True, kw_only=True)
class CalibrateConfig(Trust, Shown):
    """Options for the result."""

    output: Path = option(MISSING, "File to make for the statistics (.safetensors)", group="Output")


@command(
    CalibrateConfig,
    *("model", "task", "seed", "calibration_tokens", "generated_tokens", "method", "shared_input", "dtype", "device"),
)
def calibrate(run: CalibrateConfig, given: dict[str, Any]) -> None:
    """Run the calibration pass alone.

    `sieve prune --statistics FILE` uses its result. Where you do not give --method, it is --method widths
    --shared-input, as it is there.
    """
    recipe = Recipe.from_dict(with_preset(given))
    require_new(run.output)
    task = load_task(recipe.task)
    find_model(recipe.model)
    from sieve.calibration.keep import require_place
    from sieve.models.loading import load_model
    from sieve.run.calibrated import prunable_of_, task_statistics

    require_place(run.output)
    with progress.shown(not run.quiet):
        loaded, tokenizer = load_model(recipe.model, recipe.dtype, recipe.device, run.trust_remote_code)
        statistics = task_statistics(recipe, prunable_of_(recipe, loaded), tokenizer, task, run.output)
    summary = {"tokens": statistics.tokens, "grams": len(statistics.grams), "identity": statistics.identity}
    if run.as_json:
        print_json(summary)
    else:
        text = f"{summary['grams']} Gram matrices over {summary['tokens']:,} tokens are in {run.output}"
        console().print(text, soft_wrap=True)
    say_saved(f"the calibration is in {run.output}")
