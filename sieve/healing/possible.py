"""What healing a model needs: rows to learn from, and memory for its optimisers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from sieve.errors import InputError
from sieve.healing.config import AUTO, LORA, HealingConfig
from sieve.healing.heal import settings_of
from sieve.healing.lora import require_adaptable
from sieve.healing.masters import trained_parameters
from sieve.healing.teacher import require_rows
from sieve.tasks import Example, Task
from sieve.utils import progress
from sieve.utils.devices import free_memory

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def bytes_of_a_parameter(choices: bool) -> int:
    """What healing takes for each trained parameter beside the model.

    For each setting that is tried a master, two moments and the best weights so far; a copy of the weights at the
    start, and a gradient. choices: whether the task has choices.
    """
    return len(settings_of(choices)) * (4 + 8 + 2) + 2 + 4


def possible_healing(
    healing: HealingConfig, model: PreTrainedModel, task: Task, rows: Sequence[Example], allowed: int | None = None
) -> HealingConfig:
    """The healing that was asked for, with its kind; for "auto" none where it cannot be, and the user is told why.

    Args:
        model: dense. rows: of the calibration split.
        allowed: bytes of memory; None: what is free.

    Raises: InputError for another kind that has too few rows, or a model that takes no adapters.
    """
    if healing.kind is None:
        return healing
    automatic = healing.heal == AUTO
    try:
        require_rows(task, rows)
        if healing.kind == LORA:
            require_adaptable(model)
        elif automatic:
            _require_memory(model, task, allowed)
    except InputError as error:
        if not automatic:
            raise
        progress.note(f"the pruned model will not be healed: {error}")
        return healing.left_out()
    return replace(healing, heal=healing.kind)


def _require_memory(model: PreTrainedModel, task: Task, allowed: int | None) -> None:
    trained = sum(one.numel() for one in trained_parameters(model).values())
    needed = bytes_of_a_parameter(task.type == "multiple_choice") * trained
    free = free_memory(model.device) if allowed is None else allowed
    if needed > free:
        raise InputError(f"that takes about {needed / 2**30:.0f} GiB of memory, and {free / 2**30:.0f} GiB are free")
