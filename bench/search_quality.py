"""The quality of the searchers: how much they remove within a tolerance, and their scores at one size.

python -m bench.search_quality run      # appends to bench/results/search_quality.jsonl; a second run resumes
python -m bench.search_quality table
python -m bench.search_quality plot --task geography --output curve.png

A cell is one search: a task, a seed of its splits, a goal (ε = 5 %, or a kept fraction) and a searcher. All searchers
of a task and seed use the same factors, pivoted, as on the command line. The plan that a search returns is applied as
`sieve prune` does it, and the model is scored on the test split, so that any two cells can be compared in pairs.
"""

import argparse
import copy
import sys
import time
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

import sieve
from bench.cells import RESULTS, Results, packed, work_through
from bench.quality_shown import plot, table
from sieve.errors import ToleranceError
from sieve.evaluation.scoring import Scores, evaluate
from sieve.models.linears import prunable
from sieve.searchers import recorded
from sieve.searchers.run import SearchResult, run_search
from sieve.searchers.sensitivity import sensitivity
from sieve.tasks import load_task

KEY = ("task", "seed", "goal", "search")
TASKS = ("geography", "piqa", "imdb", "capitals")
SEARCHES = ("uniform", "budget", "ga")
KEPT = (0.6, 0.4, 0.8)
TOLERANCE = 0.05
TOKENS = 32_768  # of the calibration pass, as on the command line
BUDGETS = {"epsilon": 6_000_000, "kept": 4_000_000, "front": 12_000_000}  # layer-tokens that a genetic search may spend
OFFSPRING = 30  # a generation of 60, the default, would take most of the budget
POINTS = 10  # points of a front that are tested


def cells(tasks: list[str], seeds: list[int], searches: list[str]) -> Iterator[dict[str, Any]]:
    """All cells: the tolerance and one size for all tasks and seeds, then the curve for the first of them."""
    goals = ("dense", f"epsilon {TOLERANCE}", f"kept {KEPT[0]}")
    for seed in seeds:
        for task in tasks:
            for goal in goals:
                for search in ("dense",) if goal == "dense" else searches:
                    yield {"task": task, "seed": seed, "goal": goal, "search": search}
    first = {"task": tasks[0], "seed": seeds[0]}
    for kept in KEPT[1:]:
        for search in searches:
            yield first | {"goal": f"kept {kept}", "search": search}
    yield first | {"goal": "front", "search": "pareto"}


class Bench:
    """A model, and what the cells of the current task and seed share."""

    def __init__(self, model: str, cache: Path, tokens: int, share: float):
        self.model, self.tokenizer = sieve.load_model(model)
        self.cache, self.tokens, self.share = cache, tokens, share
        self.factors = lru_cache(maxsize=1)(self._factors)
        self._curves: dict[tuple[str, int], Any] = {}

    def _factors(self, task: str, seed: int) -> sieve.Factors:
        path = self.cache / f"{load_task(task).name}-{seed}.safetensors"
        statistics = sieve.calibrate(self.model, self.tokenizer, task, self.tokens, seed=seed, path=path)
        return sieve.project(self.model, statistics, pivot=True)

    def measure(self, cell: dict[str, Any]) -> dict[str, Any]:
        """The row of a cell."""
        task, seed, (kind, *value) = load_task(cell["task"]), cell["seed"], cell["goal"].split()
        if kind == "dense":
            return self._scored(self._test(self.model, task, seed))

        # The search. Genetic searches get a budget, the others end by themselves.
        factors = self.factors(cell["task"], seed)
        options = {"kept": float(value[0])} if kind == "kept" else {}
        if cell["search"] in ("ga", "pareto"):
            options |= {"budget": int(self.share * BUDGETS[kind]), "offspring": OFFSPRING, "generations": 100}
        started = time.perf_counter()
        try:
            with patch.object(recorded, "sensitivity", self._remembered(cell["task"], seed)):
                result = run_search(
                    self.model, self.tokenizer, factors, task, TOLERANCE, cell["search"],
                    seed=seed, bottlenecks=0, **options,
                )  # fmt: skip
        except ToleranceError as error:
            return {"failure": str(error), "removed": 0.0, "options": options}

        # What it found and spent, then the scores of the pruned model or of the whole front.
        row = {
            "removed": result.plan.prunable_removed(result.matrices),
            "options": options,
            "search_seconds": round(time.perf_counter() - started, 1),
            "layer_tokens": result.cost["layer_tokens_spent"],
            "candidates": result.cost["candidates"],
            "validation_attempts": result.validation_attempts,
            "fitness": result.pruned["fitness"].accuracy,
            "validation": result.pruned["validation"].accuracy,
            "dense": {split: scores.accuracy for split, scores in result.dense.items()},
        }
        if kind == "front":
            return row | {"front": self._front(factors, result, task, seed)}
        pruned = sieve.apply_(copy.deepcopy(self.model), factors, result.plan)
        return row | self._scored(self._test(pruned, task, seed))

    def _remembered(self, task: str, seed: int) -> Callable:
        """`sensitivity`, computed once: all searches would repeat the same backward passes."""

        def measure(*arguments: Any) -> tuple[dict[str, Any], int]:
            if (task, seed) not in self._curves:
                self._curves[task, seed] = sensitivity(*arguments)
            return self._curves[task, seed]

        return measure

    def _test(self, model: torch.nn.Module, task: sieve.Task, seed: int) -> Scores:
        return evaluate(model, self.tokenizer, task, task.splits(seed)["test"])

    def _scored(self, scores: Scores) -> dict[str, Any]:
        return {"accuracy": scores.accuracy, "loglik": scores.mean_loglik, "scores": packed(scores)}

    def _front(
        self, factors: sieve.Factors, result: SearchResult, task: sieve.Task, seed: int
    ) -> list[dict[str, float]]:
        """Test scores of plans along the front of size against log-likelihood."""
        matrices, front = prunable(self.model, factors.pivoted), []
        for one in sorted(result.evaluated, key=lambda one: one.plan.size(matrices)):
            if not front or one.scores.mean_loglik > front[-1].scores.mean_loglik:
                front.append(one)
        step = max(1, -(-len(front) // POINTS))
        points = []
        with factors.elastic(self.model) as elastic:
            for one in front[::step]:
                elastic.set_plan(one.plan)
                scores = self._test(self.model, task, seed)
                removed = one.plan.prunable_removed(matrices)
                points.append({"removed": removed, "accuracy": scores.accuracy, "loglik": scores.mean_loglik})
        return points


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.search_quality", description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("run", "table", "plot"))
    parser.add_argument("--results", type=Path, default=RESULTS / "search_quality.jsonl")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--task", dest="tasks", action="append", help="default: " + ", ".join(TASKS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--goals", nargs="+", help='such as "kept 0.6"; default: all')
    parser.add_argument("--searches", nargs="+", default=list(SEARCHES))
    parser.add_argument("--cache", type=Path, default=Path("runs/search_quality"), help="folder of calibrations")
    parser.add_argument("--tokens", type=int, default=TOKENS, help="of the calibration pass")
    parser.add_argument("--share", type=float, default=1.0, help="of the searches' budgets")
    parser.add_argument("--output", type=Path, default=RESULTS / "search_quality.png")
    chosen = parser.parse_args(arguments)

    # Tables and plots of the rows that are there.
    results, tasks = Results(chosen.results, KEY), chosen.tasks or list(TASKS)
    if chosen.what == "table":
        print(table(results))
        return
    if chosen.what == "plot":
        plot(results, tasks[0], chosen.output)
        print(f"plot in {chosen.output}")
        return

    # The cells that have no row yet.
    bench = Bench(chosen.model, chosen.cache, chosen.tokens, chosen.share)
    about = {"model": chosen.model, "tokens": chosen.tokens}
    wanted = [
        cell for cell in cells(tasks, chosen.seeds, chosen.searches) if not chosen.goals or cell["goal"] in chosen.goals
    ]
    failed = work_through(results, wanted, bench.measure, about)
    if failed:
        sys.exit(f"{failed} cells failed")


if __name__ == "__main__":
    main()
