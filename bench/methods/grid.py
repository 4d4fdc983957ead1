"""The grid of contenders, tasks and sizes, measured: score, likelihood, perplexity of general text, errors, cost."""

from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

import sieve
from bench.cells import packed
from bench.methods.contenders import ABLATION, CONTENDERS, KEPT, LOW_RANK, MASKED, SLOW, STRUCTURED, Made
from bench.methods.setting import Setting, metered
from sieve.calibration.statistics import Statistics
from sieve.checkpoint.size import model_parameters
from sieve.compression.plan import Plan
from sieve.evaluation.scoring import evaluate
from sieve.models.linears import weight_of
from sieve.models.matrix import DENSE
from sieve.tasks import encode
from sieve.tasks.general import general_text

KEY = ("contender", "task", "seed", "kept")
PERPLEXITY_TOKENS = 4096
DENSE_CELL = "dense"

# (contenders, tasks, seeds, kept fractions), the most important first.
PARTS = (
    (LOW_RANK, ("geography", "imdb"), (0,), KEPT),
    (MASKED, ("geography", "piqa", "imdb", "capitals", "commonsense_qa"), (0,), (0.5,)),
    (LOW_RANK, ("capitals", "piqa", "commonsense_qa", "boolq", "pubmed_qa"), (0,), (0.5,)),
    (STRUCTURED, ("geography", "imdb"), (0,), KEPT),
    (SLOW, ("geography",), (0,), KEPT),
    (ABLATION, ("geography", "piqa"), (0,), (0.5,)),
    (LOW_RANK, ("geography", "imdb"), (1, 2), KEPT),
)


def cells(
    tasks: list[str] | None = None, names: list[str] | None = None, seeds: list[int] | None = None
) -> Iterator[dict[str, Any]]:
    """All cells in order, or only those of these tasks, contenders and seeds."""
    for contenders, everywhere, all_seeds, sizes in PARTS:
        for seed in all_seeds:
            for task in everywhere:
                if (tasks and task not in tasks) or (seeds and seed not in seeds):
                    continue
                yield {"contender": DENSE_CELL, "task": task, "seed": seed, "kept": 1.0}
                for name, contender in contenders.items():
                    if names and name not in names:
                        continue
                    for kept in contender.kept or sizes:
                        yield {"contender": name, "task": task, "seed": seed, "kept": kept}


class Grid:
    """Measures cells. Settings and nested results are kept for the cells that follow."""

    def __init__(self, model: str, cache: Path, tokens: int):
        self.model, self.tokenizer = sieve.load_model(model)
        self.setting = lru_cache(maxsize=1)(
            lambda task, seed: Setting(self.model, self.tokenizer, task, seed, cache, tokens)
        )
        self.nested = lru_cache(maxsize=1)(self._made)
        self.general, self._general_tokens = _general(self.tokenizer)

    def measure(self, cell: Mapping[str, Any]) -> dict[str, Any]:
        """The row of a cell."""
        setting = self.setting(cell["task"], cell["seed"])
        if cell["contender"] == DENSE_CELL:
            return self._scored(self.model, setting) | {"kept_exactly": 1.0}

        # Make the result; a structured contender's is a smaller model, which is scored at once.
        where = cell["contender"], setting.task_name, setting.seed
        nested = CONTENDERS[cell["contender"]].nested
        made, calibration, build = self.nested(*where) if nested else self._made(*where, cell["kept"])
        row = {"calibration": calibration, "build": build}
        if isinstance(made, PreTrainedModel):
            lost = model_parameters(self.model) - model_parameters(made)
            whole = sum(matrix.parameters for matrix in setting.matrices.values())
            return row | self._scored(made, setting) | {"kept_exactly": 1 - lost / whole, "output_error": None}

        # A compression space runs its plan in the dense model. Statistics and dense weights are taken before.
        matrices = made.matrices(self.model)
        plan = setting.plan(cell["kept"], matrices)
        reference = setting.reference
        dense = {name: weight_of(self.model.get_submodule(name)).detach() for name in matrices}
        with made.elastic(self.model) as elastic:
            # Masks that compensate for removed weights do that work here.
            with metered() as setting_plan:
                elastic.set_plan(plan)
            row["build"] = total(build, setting_plan)
            row["output_error"] = output_error(self.model, reference, dense, plan)
            row |= self._scored(self.model, setting)
        chosen = {name: getattr(made, name, None) for name in ("ridge", "shrinkage")}
        return row | {
            "kept_exactly": 1 - plan.prunable_removed(matrices),
            "chosen": {name: value for name, value in chosen.items() if value is not None and np.isfinite(value)},
        }

    def _made(
        self, name: str, task: str, seed: int, kept: float | None = None
    ) -> tuple[Made, list[dict], dict[str, float]]:
        """A contender's result, the costs of its calibrations, and its own cost, which includes that of its base.

        Its own cost includes reading the statistics from files.
        """
        setting, contender = self.setting(task, seed), CONTENDERS[name]
        base, _, before = self.nested(contender.base, task, seed) if contender.base else (None, [], {})
        sets = contender.data if contender.calibration else ()
        calibration = [setting.cost(contender.calibration, general=one == "general") for one in sets]
        with metered() as build:
            made = contender.make(setting, kept, base)
        return made, calibration, total(before, build)

    def _scored(self, model: PreTrainedModel, setting: Setting) -> dict[str, Any]:
        scores = evaluate(model, self.tokenizer, setting.task, setting.test)
        text = evaluate(model, self.tokenizer, general_text(), self.general)
        nats = float(np.average(text.loglik, weights=self._general_tokens))
        return {
            "accuracy": scores.accuracy,
            "loglik": scores.mean_loglik,
            "perplexity": float(np.exp(-nats)),
            "scores": packed(scores),
        }


def total(one: Mapping[str, float], two: Mapping[str, float]) -> dict[str, float]:
    """The cost of two stages that follow one another."""
    times = {name: round(one.get(name, 0) + two[name], 4) for name in two if name != "peak_bytes"}
    return times | {"peak_bytes": max(one.get("peak_bytes", 0), two["peak_bytes"])}


@torch.no_grad()
def output_error(model: torch.nn.Module, reference: Statistics, dense: Mapping[str, torch.Tensor], plan: Plan) -> float:
    """Σ_t |W x_t - M x_t|² / Σ_t |W x_t|² on the task's calibration tokens, averaged over the pruned matrices.

    M is the linear map of the layer in the model, which must run the plan.

    Args:
        reference: Gram matrices of the inputs of every matrix.
        dense: weights W [m, n] of the dense model by name.
    """
    errors = []
    for name, rank in plan.items():
        if rank == DENSE:
            continue
        W = dense[name].float()
        M = linear_map(model.get_submodule(name), dense[name])
        gram = reference.grams[reference.sources[name].gram]
        lost, whole = (float(((D @ gram) * D).sum()) for D in (W - M, W))
        errors.append(max(lost, 0.0) / whole)
    return float(np.mean(errors))


def linear_map(layer: torch.nn.Module, like: torch.Tensor) -> torch.Tensor:
    """M [m, n] float32 of a layer y = M x + b of any kind: its outputs for the unit vectors, minus that for zero.

    Args:
        like: a weight [m, n] with the layer's dtype and device.
    """
    n = like.shape[1]
    y = layer(torch.cat([torch.eye(n), torch.zeros(1, n)]).to(like)).float()
    return (y[:n] - y[n]).T


def _general(tokenizer: Any) -> tuple[list, list[int]]:
    """Held-out general text of about `PERPLEXITY_TOKENS` tokens, and the number of scored tokens of each text."""
    task, texts, counts = general_text(), [], []
    for example in task.splits()["test"]:
        ids, start = encode(tokenizer, task, example, example.target)
        texts.append(example)
        counts.append(len(ids) - start)
        if sum(counts) >= PERPLEXITY_TOKENS:
            break
    return texts, counts
