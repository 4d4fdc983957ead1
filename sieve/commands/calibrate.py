"""`sieve calibrate`: the calibration pass alone."""

from pathlib import Path
from typing import Annotated

import typer

from sieve.commands import options as given
from sieve.commands.output import print_json, say_saved
from sieve.models.config import find_model
from sieve.run.recipe import Recipe
from sieve.tasks import load_task
from sieve.utils import progress
from sieve.utils.files import require_new
from sieve.utils.terminal import console


def calibrate(
    model: given.Model,
    output: Annotated[Path, typer.Option(help="File for the statistics (.safetensors).")],
    task: given.TaskOption = None,
    calibration_tokens: given.Tokens = None,
    method: given.Method = None,
    dtype: given.Dtype = None,
    device: given.Device = None,
    trust_remote_code: given.Trust = False,
    seed: given.Seed = None,
    as_json: given.Json = False,
    quiet: given.Quiet = False,
) -> None:
    """Run the calibration pass alone; `sieve prune --statistics FILE` uses its result."""
    recipe = Recipe.from_dict(
        {}, model=model, task=task, calibration_tokens=calibration_tokens, method=method, dtype=dtype, device=device,
        seed=seed,
    )  # fmt: skip
    require_new(output)
    load_task(recipe.task)
    find_model(recipe.model)
    from sieve.calibration import collect
    from sieve.calibration.keep import require_place
    from sieve.models.loading import load_model

    require_place(output)
    with progress.shown(not quiet):
        loaded, tokenizer = load_model(recipe.model, recipe.dtype, recipe.device, trust_remote_code)
        statistics = collect.calibrate(
            loaded, tokenizer, recipe.task, recipe.calibration_tokens, recipe.method, recipe.seed, path=output
        )
    summary = {"tokens": statistics.tokens, "grams": len(statistics.grams), "identity": statistics.identity}
    if as_json:
        print_json(summary)
    else:
        text = f"{summary['grams']} Gram matrices over {summary['tokens']:,} tokens are in {output}"
        console().print(text, soft_wrap=True)
    say_saved(f"the calibration is in {output}")
