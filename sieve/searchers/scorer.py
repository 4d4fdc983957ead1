"""How a search scores a model on examples: as its task says, or by the user's own function."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sieve.errors import InputError
from sieve.evaluation.scoring import Prepared, Scores, prepare
from sieve.models.loading import evaluating
from sieve.searchers.signal import DECIDING, dense_scores, require_signal
from sieve.tasks import Example, Task

Fitness = Callable[[PreTrainedModel, Sequence[Example]], Sequence[float]]
"""The user's own: (model, examples) → one number per example, larger is better."""


class Scorer:
    """Scores of one model, whatever its weights are at the moment."""

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, task: Task, fitness: Fitness | None = None
    ):
        self._model, self._tokenizer, self._task, self._fitness = model, tokenizer, task, fitness

    def prepare(self, examples: Sequence[Example], batch_tokens: int | None = None) -> Prepared:
        """The examples, ready to be scored again and again. batch_tokens: see `sieve.evaluate`."""
        if self._fitness is not None:
            return Prepared(lambda model: self._own_scores(model, examples), 0, 0, fixed_passes=False)
        return prepare(self._model, self._tokenizer, self._task, examples, batch_tokens)

    def dense_scores(
        self,
        splits: Mapping[str, Sequence[Example]],
        known: Mapping[str, Scores] | None = None,
        allow_no_signal: bool = False,
    ) -> dict[str, Scores]:
        """The dense model's, on the splits that decide. `known`: those of the task, where they were measured before."""
        if self._fitness is not None:
            with evaluating(self._model), torch.inference_mode():
                return {split: self.prepare(splits[split]).run(self._model) for split in DECIDING}
        if known is not None:
            return dict(known)
        return dense_scores(self._model, self._tokenizer, self._task, splits, allow_no_signal)

    def require_signal(self, dense: Mapping[str, Scores], allow_no_signal: bool) -> None:
        """InputError where the dense model scores 0, unless `allow_no_signal`; of own scores 0 may mean anything."""
        for split in DECIDING if self._fitness is None else ():
            require_signal(dense[split], split, self._task, allow_no_signal)

    def _own_scores(self, model: PreTrainedModel, examples: Sequence[Example]) -> Scores:
        """The user's scores, checked; they stand for the log-likelihoods, too."""
        values = np.asarray(self._fitness(model, examples), dtype=np.float64)
        if values.shape != (len(examples),) or not np.isfinite(values).all():
            raise InputError(
                f"the fitness function must give one finite number for each of the {len(examples)} examples, got an "
                f"array of shape {values.shape}"
            )
        return Scores(values, values, 0)
