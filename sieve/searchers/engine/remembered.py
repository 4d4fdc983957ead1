"""Scores that a run needs once, such as those on the validation split: from its journal where that has them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from sieve.evaluation.scoring import Scores

if TYPE_CHECKING:
    from sieve.searchers.engine.journal import Journal

_STORED_AS = {"choice_logprob": "contrast"}  # journals keep the name that they began with
_FIELDS = {stored: name for name, stored in _STORED_AS.items()}


def remembered(journal: Journal | None, key: str, measure: Callable[[], Scores]) -> Scores:
    """What `measure` gives, which is called only where the journal does not know `key` yet."""
    if journal is None:
        return measure()
    if key not in journal.records:
        journal.add(key, {"scores": to_record(measure())})
    return from_record(journal.records[key]["scores"])


def to_record(scores: Scores) -> dict[str, Any]:
    """Scores as JSON holds them, to the bit."""
    return {_STORED_AS.get(name, name): _plain(value) for name, value in vars(scores).items()}


def from_record(record: Mapping[str, Any]) -> Scores:
    """What `to_record` was given."""
    values = {name: np.array(value) if isinstance(value, list) else value for name, value in record.items()}
    return Scores(**{_FIELDS.get(name, name): value for name, value in values.items()})


def plan_key(plan: Mapping[str, int | str]) -> str:
    """The plan as a part of a key."""
    return ",".join(f"{name}={rank}" for name, rank in sorted(plan.items()))


def _plain(value: np.ndarray | int | None) -> list[float] | int | None:
    return value.tolist() if isinstance(value, np.ndarray) else value
