"""How fast the dense and the pruned model are on this machine, measured in turns."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel

from sieve.checkpoint.size import model_bytes
from sieve.evaluation.speed import measure_speed, measure_speeds, speed_report
from sieve.models.loading import load_model
from sieve.run.recipe import Recipe
from sieve.utils import progress
from sieve.utils.devices import device_failed, free_memory, is_out_of_memory
from sieve.utils.messages import one_line

# Weights and passes of a model that is loaded, by the bytes of its weights.
_LOADED = 2


def compare_speeds(
    pruned: PreTrainedModel,
    recipe: Recipe,
    dense_bytes: int,
    before: dict[str, float] | None,
    trust_remote_code: bool = False,
) -> dict[str, Any] | None:
    """`speed_report` of a run's models; the dense one is loaded again where memory has room for it.

    Args:
        dense_bytes: of the dense model's weights.
        before: what the dense model took at the beginning of the run, for lack of better; None: it does not decode.
    """
    if before is None:
        return None
    room, allowed = free_memory(pruned.device), recipe.limits.allowed
    if allowed is not None:
        room = min(room, allowed - model_bytes(pruned))
    if room >= _LOADED * dense_bytes:
        try:
            with progress.muted():
                dense, _ = load_model(recipe.model, recipe.dtype, recipe.device, trust_remote_code)
            return speed_report(pruned, *(measure_speeds(dense, pruned) or (None, None)))
        except Exception as error:
            if device_failed(error) and not is_out_of_memory(error):
                raise
            # A run must not be lost because its dense model has gone in the meantime.
            progress.note(
                f"the dense model's speed is that of the beginning: it is not loaded again: {one_line(error)}"
            )
    return speed_report(pruned, before, measure_speed(pruned))
