"""What the scores of a search depend on: a journal of anything else is refused."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sieve.compression.space import CompressionSpace
from sieve.searchers.config import Options
from sieve.searchers.engine.config import EngineConfig
from sieve.tasks import Example, Task
from sieve.utils.identity import identity_of

_NAMES_OF_TASK = ("name", "description", "data", "file")
# Runs that an earlier version began go on: what came later is left out where it is not used.
_LATER = ("messages",)
_FIRST_OPTIONS = (
    "objective", "kept", "granularity", "paper", "population", "offspring", "generations", "budget", "layers",
    "racing", "surrogate", "memory", "bottlenecks", "workers",
)  # fmt: skip


def search_identity(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    factors: CompressionSpace,
    task: Task,
    splits: Mapping[str, Sequence[Example]],
    recipe: Mapping[str, Any],
) -> dict[str, Any]:
    """All that an evaluation depends on, by the names that a refusal gives. The test split decides nothing."""
    data = [task_identity(task), *(splits[split] for split in ("calibration", "fitness", "validation"))]
    return identity_of(model, tokenizer) | {
        "data": hashlib.sha256(repr(data).encode()).hexdigest(),
        "factors": factors.fingerprint(),
        "recipe": dict(recipe),
    }


def options_identity(options: Options, engine: EngineConfig) -> dict[str, Any]:
    """What of the options decides a search."""
    found = {
        name: value
        for config in (options, engine)
        for name, value in asdict(config).items()
        if name in _FIRST_OPTIONS or value != getattr(type(config)(), name)
    }
    return found | {"workers": engine.workers is not None}  # their number decides nothing


def task_identity(task: Task) -> dict[str, Any]:
    """The fields of a task that its scores depend on; its examples come on top."""
    # Where the data lie does not matter; a function has no name that lasts but its own.
    asked = {field.name: getattr(task, field.name) for field in fields(task) if field.name not in _NAMES_OF_TASK}
    asked = {name: value for name, value in asked.items() if value or name not in _LATER}
    if callable(task.metric):
        asked["metric"] = f"{task.metric.__module__}:{task.metric.__qualname__}"
    return asked
