"""The searcher against scores whose right answer is known."""

import numpy as np
import pytest

from sieve.compression.plan import Plan
from sieve.evaluation.scoring import Scores
from sieve.models.matrix import Matrix
from sieve.searchers.algorithms.uniform import uniform, uniform_plans
from sieve.searchers.problem import SearchProblem, within

MATRICES = {name: Matrix(name, 64, 64, i) for i, name in enumerate("abc")}


def scores(right: int, n: int = 100) -> Scores:
    values = (np.arange(n) < right).astype(float)
    return Scores(values, values - 1, n)


def problem(accuracy, tolerance: float = 0.05) -> SearchProblem:
    return SearchProblem(MATRICES, lambda plan: scores(accuracy(plan)), scores(80), tolerance, rank_multiple=4)


def kept(plan: Plan) -> float:
    return 1 - plan.prunable_removed(MATRICES)


@pytest.mark.parametrize("threshold", [0.07, 0.31, 0.55, 0.8])
def test_finds_the_smallest_acceptable_level_and_then_larger_ones(threshold):
    task = problem(lambda plan: 80 if kept(plan) >= threshold else 60)
    found = [candidate.plan for candidate in uniform(task)]
    acceptable = [plan for plan in uniform_plans(task) if kept(plan) >= threshold]
    assert found == acceptable
    assert len(task.evaluated) <= 6 + len(acceptable)


def test_bisection_stops_evaluating_once_the_first_is_taken():
    task = problem(lambda plan: 80 if kept(plan) >= 0.5 else 60)
    next(uniform(task))
    assert len(task.evaluated) <= 6
    assert len({str(candidate.plan) for candidate in task.evaluated}) == len(task.evaluated)


def test_nothing_acceptable_yields_nothing():
    assert list(uniform(problem(lambda plan: 10))) == []


def test_plans_are_distinct_growing_and_prune_something():
    sizes = [plan.size(MATRICES) for plan in uniform_plans(problem(lambda plan: 80))]
    assert sizes == sorted(set(sizes))
    assert sizes[-1] < 3 * 64 * 64


def test_within_is_relative_and_exact_at_the_boundary():
    assert within(scores(76), scores(80), 0.05)
    assert not within(scores(75), scores(80), 0.05)
    assert within(scores(80), scores(80), 0.0)
    assert not within(scores(79), scores(80), 0.0)


def test_confident_demands_the_lower_end():
    assert not within(scores(77), scores(80), 0.05, confident=True)
    assert within(scores(80), scores(80), 0.05, confident=True)
    assert within(scores(300, 400), scores(310, 400), 0.10, confident=True)
