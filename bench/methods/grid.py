"""Which contender is measured where, and how: score and likelihood on the task, perplexity elsewhere, errors, cost."""

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
from sieve.compression.masks.masks import Masks
from sieve.compression.plan import Plan
from sieve.evaluation.scoring import evaluate
from sieve.models.linears import weight_of
from sieve.models.matrix import DENSE
from sieve.tasks import encode
from sieve.tasks.general import general_text

KEY = ("contender", "task", "seed", "kept")
PERPLEXITY_TOKENS = 4096
DENSE_CELL = "dense"

# (contenders, tasks, seeds, kept fractions), the most telling first.
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
    """All there is to do, in order; of it what these tasks, contenders and seeds leave."""
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
    """Measures cells; what one cell leaves is used by the next, as far as it can be."""

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
        where = cell["contender"], setting.task_name, setting.seed
        nested = CONTENDERS[cell["contender"]].nested
        made, calibration, build = self.nested(*where) if nested else self._made(*where, cell["kept"])
        row = {"calibration": calibration, "build": build}
        if isinstance(made, PreTrainedModel):
            lost = model_parameters(self.model) - model_parameters(made)
            whole = sum(matrix.parameters for matrix in setting.matrices.values())
            return row | self._scored(made, setting) | {"kept_exactly": 1 - lost / whole, "output_error": None}
        matrices = made.matrices(self.model)
        plan = Plan.uniform(matrices.values(), cell["kept"]) if isinstance(made, Masks) else setting.plan(cell["kept"])
        reference = setting.reference  # collected, if need be, while the model is dense
        with made.elastic(self.model) as elastic:
            with metered() as turning:  # where masks make good for what they drop, this is where the work is
                elastic.set_plan(plan)
            row["build"] = total(build, turning)
            row["output_error"] = output_error(self.model, reference, made, plan)
            row |= self._scored(self.model, setting)
        chosen = {name: getattr(made, name, None) for name in ("ridge", "shrinkage")}
        return row | {
            "kept_exactly": 1 - plan.prunable_removed(matrices),
            "chosen": {name: value for name, value in chosen.items() if value is not None and np.isfinite(value)},
        }

    def _made(
        self, name: str, task: str, seed: int, kept: float | None = None
    ) -> tuple[Made, list[dict], dict[str, float]]:
        """What a contender makes; what its calibrations cost, and what it cost itself, its base included.

        Its own cost includes reading the statistics, which are kept as files.
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
    """What two stages cost, one after the other."""
    times = {name: round(one.get(name, 0) + two[name], 4) for name in two if name != "peak_bytes"}
    return times | {"peak_bytes": max(one.get("peak_bytes", 0), two["peak_bytes"])}


@torch.no_grad()
def output_error(model: torch.nn.Module, reference: Statistics, made: Made, plan: Plan) -> float:
    """Σ_t |W x_t - M x_t|² / Σ_t |W x_t|² on the task's calibration tokens, a mean over the pruned matrices.

    M is read off the model where masks are set (`elastic` and its `set` come first), of pairs it is B A.

    Args:
        reference: Grams of the inputs of every matrix.
    """
    errors = []
    for name, rank in plan.items():
        if rank == DENSE:
            continue
        layer = model.get_submodule(name)
        if isinstance(made, Masks):
            dense, left = made[name].weight.float(), weight_of(layer).float()
        else:
            A, B = made[name].slice(rank)
            dense, left = weight_of(layer.dense).float(), B.float() @ A.float()
        gram = reference.grams[reference.sources[name].gram]
        lost, whole = (float(((W @ gram) * W).sum()) for W in (dense - left, dense))
        errors.append(max(lost, 0.0) / whole)
    return float(np.mean(errors))


def _general(tokenizer: Any) -> tuple[list, list[int]]:
    """Held-out general text of about `PERPLEXITY_TOKENS` tokens, and how many of each text are scored."""
    task, texts, counts = general_text(), [], []
    for example in task.splits()["test"]:
        ids, start = encode(tokenizer, task, example, example.target)
        texts.append(example)
        counts.append(len(ids) - start)
        if sum(counts) >= PERPLEXITY_TOKENS:
            break
    return texts, counts
