"""What a report says of masks."""

from dataclasses import asdict
from typing import Any

from transformers import PreTrainedModel

from sieve.calibration.statistics import Statistics
from sieve.compression.masks.masks import Masks
from sieve.nn.semi_structured import PATTERN, runs_sparse
from sieve.run.recipe import Recipe


def mask_report(recipe: Recipe, masks: Masks, model: PreTrainedModel, general: Statistics | None) -> dict[str, Any]:
    """How weights were scored, and whether this device gains time by their zeros (nothing gains bytes)."""
    options = asdict(masks.options)
    return {
        "pattern": options.pop("pattern"),
        "options": options,
        "general": None if general is None else {"text": recipe.general, "tokens": general.tokens},
        "runs_sparse": masks.options.pattern == PATTERN and runs_sparse(model.device, model.dtype),
    }
