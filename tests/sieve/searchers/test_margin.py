"""The margin makes good what is lost by choosing the smallest candidate that passes by luck."""

import numpy as np
import pytest

from sieve.compression.plan import Plan
from sieve.errors import ToleranceError
from sieve.evaluation.scoring import Scores
from sieve.models.matrix import Matrix
from sieve.searchers.confirm import confirm
from sieve.searchers.margin import selection_margin
from sieve.searchers.problem import SearchProblem, within

MATRICES = {"a": Matrix("a", 100, 100, 0)}
TOLERANCE = 0.1


def right(share, n, generator):
    return (generator.random(n) < share).astype(float)


def scores(values):
    return Scores(values, np.log(0.1 + 0.8 * values), 0)


def problem_of(truths, n, seed, dense_share=0.8):
    """Candidates of ranks 1, 2, … that are right on so large a share of questions, drawn n times."""
    generator = np.random.default_rng(seed)
    problem = SearchProblem(MATRICES, None, scores(right(dense_share, n, generator)), TOLERANCE, seed=seed)
    for rank, truth in enumerate(truths, 1):
        problem.add(Plan({"a": rank}), scores(right(truth, n, generator)))
    return problem


def chosen_truth(truths, margin, seed, n=200):
    """The true score of what a search with these candidates ends at: as the tolerance allows it at least .72."""
    problem = problem_of(truths, n, seed)
    generator = np.random.default_rng(seed + 10_000)
    dense = scores(right(0.8, n, generator))
    validation = {rank: scores(right(truth, n, generator)) for rank, truth in enumerate(truths, 1)}
    offered = [one for one in problem.evaluated if problem.accepts(one)]
    try:
        found = confirm(problem, offered, lambda plan: validation[plan["a"]], dense, margin)
    except ToleranceError:
        return 0.8
    return truths[found.winner.plan["a"] - 1]


def test_with_the_margin_the_choice_keeps_the_tolerance_on_average():
    """Forty candidates are just too small: without a margin, one of them often passes by luck."""
    truths = [0.7] * 40 + [0.74, 0.76, 0.78]
    without, with_margin = (
        np.mean([chosen_truth(truths, margin, seed) for seed in range(60)]) for margin in (False, True)
    )
    assert without < 0.72 <= with_margin


def test_where_luck_plays_no_part_there_is_no_margin():
    assert selection_margin(problem_of([0.2, 0.5, 0.79], 400, 0), 400) == 0
    problem = problem_of([0.7], 100, 0)
    problem.tolerance = 0.0
    assert selection_margin(problem, 100) == 0
    problem.evaluated = []
    assert selection_margin(problem, 100) == 0


def test_more_candidates_on_the_border_need_more_and_more_questions_less():
    few, many = (np.mean([selection_margin(problem_of([0.69] * k, 200, s), 200) for s in range(20)]) for k in (1, 12))
    assert many > few
    small, large = (np.mean([selection_margin(problem_of([0.7] * 8, n, s), n) for s in range(20)]) for n in (150, 3000))
    assert large < small


def test_the_same_search_has_the_same_margin_and_it_is_within_what_is_allowed():
    ones, others = ([selection_margin(problem_of([0.7] * 40, 200, seed), 200) for seed in range(5)] for _ in range(2))
    assert ones == others
    assert 0 < max(ones) <= TOLERANCE
    assert min(ones) >= 0


def test_validation_is_not_asked_about_what_keeps_no_margin_on_fitness():
    margins = [selection_margin(problem_of([0.7] * 40 + [0.8], 200, seed), 200) for seed in range(5)]
    problem = problem_of([0.7] * 40 + [0.8], 200, margins.index(max(margins)))
    asked = []

    def stored(plan):
        asked.append(plan["a"])
        return scores(np.ones(200))

    offered = [one for one in problem.evaluated if problem.accepts(one)]
    found = confirm(problem, offered, stored, scores(np.ones(200)), margin=True)
    assert found.margin == problem.margin > 0
    for one in problem.evaluated:
        if one.plan["a"] in asked:
            assert within(one.scores, problem.dense, TOLERANCE, margin=found.margin)


def test_a_message_names_the_floor_with_its_margin():
    problem = problem_of([0.69] * 12, 200, 1)
    offered = [one for one in problem.evaluated if problem.accepts(one)]
    dense = scores(np.ones(200))
    with pytest.raises(ToleranceError, match="no pruned model has an accuracy of at least"):
        confirm(problem, offered, lambda plan: scores(np.zeros(200)), dense, margin=True)
