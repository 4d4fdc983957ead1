"""What a search measures once, before its first candidate: from the journal where that has it.

A resumed search then goes by the same bits as the one that was interrupted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sieve.evaluation.scoring import Scores
from sieve.models.matrix import Matrix
from sieve.searchers.engine.remembered import from_record, to_record
from sieve.searchers.objective import Table, measure
from sieve.searchers.sensitivity import EXAMPLES, sensitivity
from sieve.searchers.signal import DECIDING
from sieve.tasks import Example, Task

if TYPE_CHECKING:
    from sieve.calibration.text import Sample
    from sieve.compression.low_rank.factors import Factors
    from sieve.searchers.engine.journal import Journal


def dense_once(journal: Journal | None, measured: Callable[[], Mapping[str, Scores]]) -> dict[str, Scores]:
    """The dense model's scores by split."""

    def record() -> dict[str, Any]:
        return {split: to_record(scores) for split, scores in measured().items()}

    found = _once(journal, "dense", record)
    return {split: from_record(found[split]) for split in DECIDING}


def predicted_losses_once(
    journal: Journal | None,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    factors: Factors,
    task: Task,
    examples: Sequence[Example],
    generated: Sequence[Sample] = (),
) -> tuple[dict[str, np.ndarray], int]:
    """`sensitivity` on the first of these examples: predicted loss per matrix and rank, and the tokens it took."""

    def record() -> dict[str, Any]:
        curves, tokens = sensitivity(model, tokenizer, factors, task, examples[:EXAMPLES], generated)
        return {"tokens": tokens, "curves": {name: curve.tolist() for name, curve in curves.items()}}

    found = _once(journal, "curves", record)
    return {name: np.array(curve) for name, curve in found["curves"].items()}, found["tokens"]


def layer_times_once(
    journal: Journal | None, model: PreTrainedModel, matrices: dict[str, Matrix], objective: str
) -> Table | None:
    """Layers' times for the objective "latency", which never come out the same twice; None for another."""
    if objective != "latency":
        return None
    return _once(journal, "latency", lambda: {"table": measure(model, matrices)})["table"]


def _once(journal: Journal | None, key: str, record: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The journal's record of this key, which is made now where it has none."""
    if journal is None:
        return record()
    if key not in journal.records:
        journal.add(key, record())
    return journal.records[key]
