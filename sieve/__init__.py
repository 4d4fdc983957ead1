"""Sieve: the smallest language model that still does your task.

Names are imported when first used, so that `import sieve` and `sieve --help` are quick; what `import sieve` does at
once is to have transformers know pruned models whenever it is loaded.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from sieve.checkpoint import import_hook
from sieve.utils import noise

__version__ = "0.1.0"

if TYPE_CHECKING:
    from sieve.calibration.collect import calibrate
    from sieve.calibration.statistics import Statistics
    from sieve.checkpoint.adapters import lora_targets
    from sieve.checkpoint.export import export
    from sieve.checkpoint.folder import load, save
    from sieve.compression.apply import apply_
    from sieve.compression.low_rank.factors import Factors
    from sieve.compression.low_rank.project import project
    from sieve.compression.low_rank.refit import refit
    from sieve.compression.low_rank.share_inputs import share_inputs_
    from sieve.compression.masks.config import MaskOptions
    from sieve.compression.masks.mask import mask
    from sieve.compression.masks.masks import Masks
    from sieve.compression.plan import Plan
    from sieve.compression.quantize import quantize_
    from sieve.compression.vocabulary.trim import TrimmedVocabulary, match_vocabulary_, trim_vocabulary_
    from sieve.evaluation.predict import Prediction, predict
    from sieve.evaluation.scoring import evaluate
    from sieve.healing.heal import Healing, heal
    from sieve.models.loading import load_model
    from sieve.nn.low_rank import LowRankLinear, PivotedLinear
    from sieve.run.pipeline import prune
    from sieve.run.presets import PRESETS
    from sieve.run.recipe import Recipe
    from sieve.searchers.run import search
    from sieve.tasks import Task, load_task
    from sieve.utils import progress

_HOME = {
    "Factors": "compression.low_rank.factors",
    "Healing": "healing.heal",
    "LowRankLinear": "nn.low_rank",
    "PivotedLinear": "nn.low_rank",
    "PRESETS": "run.presets",
    "MaskOptions": "compression.masks.config",
    "Masks": "compression.masks.masks",
    "Plan": "compression.plan",
    "Prediction": "evaluation.predict",
    "Recipe": "run.recipe",
    "Statistics": "calibration.statistics",
    "Task": "tasks",
    "TrimmedVocabulary": "compression.vocabulary.trim",
    "apply_": "compression.apply",
    "calibrate": "calibration.collect",
    "evaluate": "evaluation.scoring",
    "export": "checkpoint.export",
    "heal": "healing.heal",
    "load": "checkpoint.folder",
    "load_model": "models.loading",
    "load_task": "tasks",
    "lora_targets": "checkpoint.adapters",
    "mask": "compression.masks.mask",
    "predict": "evaluation.predict",
    "match_vocabulary_": "compression.vocabulary.trim",
    "project": "compression.low_rank.project",
    "prune": "run.pipeline",
    "quantize_": "compression.quantize",
    "refit": "compression.low_rank.refit",
    "save": "checkpoint.folder",
    "search": "searchers.run",
    "share_inputs_": "compression.low_rank.share_inputs",
    "trim_vocabulary_": "compression.vocabulary.trim",
}

__all__ = [
    "PRESETS",
    "Factors",
    "Healing",
    "LowRankLinear",
    "MaskOptions",
    "Masks",
    "PivotedLinear",
    "Plan",
    "Prediction",
    "Recipe",
    "Statistics",
    "Task",
    "TrimmedVocabulary",
    "apply_",
    "calibrate",
    "evaluate",
    "export",
    "heal",
    "load",
    "load_model",
    "load_task",
    "lora_targets",
    "mask",
    "match_vocabulary_",
    "predict",
    "progress",
    "project",
    "prune",
    "quantize_",
    "refit",
    "save",
    "search",
    "share_inputs_",
    "trim_vocabulary_",
]


def __getattr__(name: str) -> Any:
    if name == "progress":
        return import_module("sieve.utils.progress")
    if name not in _HOME:
        raise AttributeError(f"module 'sieve' has no attribute {name!r}")
    return globals().setdefault(name, getattr(import_module(f"sieve.{_HOME[name]}"), name))


import_hook.register()
noise.quiet_imports()
