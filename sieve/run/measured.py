"""Scores of models on the splits of a report, kept in a run's journal."""

from collections.abc import Mapping, Sequence

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sieve.evaluation.scoring import Scores, evaluate
from sieve.searchers.engine.journal import Journal
from sieve.searchers.engine.remembered import remembered
from sieve.tasks import Example, Task
from sieve.tasks.stored import Data

MEASURED = ("fitness", "validation", "test")
"""Splits whose scores are in a report."""


class Measured:
    """Scores of models on the splits of a report; scores that the journal has are not measured again.

    data: what the splits are (`describe_data`); scores of other data are measured anew.
    """

    def __init__(self, task: Task, splits: Mapping[str, Sequence[Example]], data: Data, journal: Journal | None):
        self._task, self._splits, self._data, self._journal = task, splits, data, journal

    def __call__(self, name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, Scores]:
        """The scores of the model that the journal calls `name`, on each split."""
        return {split: self.on(split, name, model, tokenizer) for split in MEASURED}

    def on(self, split: str, name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Scores:
        """Its scores on one split."""
        key = f"{name} on {split} {self._data[split]['sha256']}"
        return remembered(self._journal, key, lambda: evaluate(model, tokenizer, self._task, self._splits[split]))
