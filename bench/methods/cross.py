"""Transfer between data sets: a model pruned for one task is tested on all others."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

import sieve
from bench.cells import packed
from bench.methods.setting import Setting
from sieve.evaluation.scoring import evaluate
from sieve.searchers.run import run_search
from sieve.tasks import Example, Task

KEY = ("source", "target", "seed")
SOURCES = ("dense", "geography", "piqa", "boolq", "imdb")
TARGETS = ("geography", "capitals", "piqa", "commonsense_qa", "boolq", "pubmed_qa", "imdb")
BY_LIKELIHOOD = ("boolq", "pubmed_qa")  # the dense model does no better than the majority class
TOLERANCE = 0.05


def cells(tasks: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
    for source in SOURCES:
        for target in TARGETS:
            if not tasks or source in (*tasks, "dense"):
                yield {"source": source, "target": target, "seed": 0}


class Cross:
    """Prunes for each source task once, and tests the result on the target tasks."""

    def __init__(self, model: str, cache: Path, tokens: int):
        self.model, self.tokenizer = sieve.load_model(model)
        self._setting = lambda task, seed: Setting(self.model, self.tokenizer, task, seed, cache, tokens)
        self.pruned = lru_cache(maxsize=1)(self._pruned)

    def measure(self, cell: Mapping[str, Any]) -> dict[str, Any]:
        """The row of a cell."""
        if cell["source"] == "dense":
            return self._scored(cell)
        factors, plan, found = self.pruned(cell["source"], cell["seed"])
        with factors.elastic(self.model) as elastic:
            elastic.set_plan(plan)
            return self._scored(cell) | found

    def _scored(self, cell: Mapping[str, Any]) -> dict[str, Any]:
        setting = self._setting(cell["target"], cell["seed"])
        scores = evaluate(self.model, self.tokenizer, setting.task, setting.test)
        return {"accuracy": scores.accuracy, "loglik": scores.mean_loglik, "scores": packed(scores)}

    def _pruned(self, source: str, seed: int) -> tuple[sieve.Factors, sieve.Plan, dict[str, Any]]:
        """The model calibrated, projected and searched as the command line does it: pivoted, uniform, within 5 %."""
        setting = self._setting(source, seed)
        factors = sieve.project(self.model, setting.statistics("output_aligned"), pivot=True)
        options = {}
        if source in BY_LIKELIHOOD:
            options["fitness"] = likelihood(self.tokenizer, setting.task)
        result = run_search(
            self.model, self.tokenizer, factors, setting.task, TOLERANCE, "uniform", seed=seed, **options
        )  # fmt: skip
        removed = result.plan.prunable_removed(result.matrices)
        return factors, result.plan, {"removed": removed, "by_likelihood": source in BY_LIKELIHOOD}


def likelihood(tokenizer: Any, task: Task) -> Callable[[Any, Sequence[Example]], np.ndarray]:
    """A fitness: the probability of the right choice among all choices, in [0, 1]."""
    return lambda model, examples: np.exp(evaluate(model, tokenizer, task, examples).choice_logprob)
