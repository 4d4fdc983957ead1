"""A run's copy of its task: a file that works in any folder, and the identity of its data."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from sieve.tasks.example import Example

TASK_FILE = "task.yaml"
"""Its name in the folder of a pruned model, or of one that is being made."""

Data = dict[str, dict[str, Any]]
"""Split → {"examples": how many, "sha256": of questions and answers}."""


def describe_data(splits: Mapping[str, Sequence[Example]]) -> Data:
    """The identity of the data, split by split: plain values, ready for JSON."""
    return {name: {"examples": len(part), "sha256": _digest(part)} for name, part in splits.items()}


def changed_splits(before: Mapping[str, Any], now: Data) -> list[str]:
    """The changed splits and how they changed, in words; splits that `before` lacks are left out."""
    return [
        f"{name} ({before[name]['examples']} examples, now {now[name]['examples']})"
        if before[name]["examples"] != now[name]["examples"]
        else f"{name} ({now[name]['examples']} examples, not the same ones)"
        for name in now
        if name in before and before[name] != now[name]
    ]


def _digest(examples: Sequence[Example]) -> str:
    digest = hashlib.sha256()
    for one in examples:
        content = [one.prompt, one.choices, one.answer, one.references, one.neutral]
        digest.update(json.dumps(content).encode() + b"\n")
    return digest.hexdigest()
