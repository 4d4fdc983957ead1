"""Racing against scores that are known: winners stay, the hopeless leave early, bounds hold."""

import numpy as np
import pytest

from sieve.evaluation.scoring import Scores
from sieve.searchers.successive_halving import estimate, successive_halving

N = 400


class Table:
    """An engine whose candidates are rows of numbers."""

    def __init__(self, rows):
        self.rows, self.asked = rows, 0
        self.borders = [0, N // 8, N // 4, N // 2, N]

    def __len__(self):
        return 4

    def scores(self, plans, part):
        first, end = self.borders[part : part + 2]
        self.asked += len(plans) * (end - first)
        return [Scores(self.rows[plan][first:end], self.rows[plan][first:end], 1) for plan in plans]


def rows(means, noise=0.1, seed=0):
    draw = np.random.default_rng(seed)
    hard = draw.normal(size=N)  # common to all
    return [hard + mean + noise * draw.normal(size=N) for mean in means]


def value(scores):
    return scores.score


@pytest.mark.parametrize("seed", range(5))
def test_the_winner_stays_and_losers_leave_early(seed):
    means = np.linspace(0, 1, 20)
    table = Table(rows(means, seed=seed))
    known = Scores(*[rows([0.5], seed=seed)[0]] * 2, 1)
    bar = float(known.score.mean())
    result, begun = successive_halving(table, list(range(20)), value, lambda index, mean: mean - bar, [known])
    assert [len(scores.score) for scores in begun] == [N // 8] * 20
    assert {index for index in range(20) if means[index] > 0.55} <= set(result)
    assert all(means[index] > 0.4 for index in result)
    assert table.asked < 0.75 * 20 * N
    assert all(np.array_equal(scores.score, table.rows[index]) for index, scores in result.items())


def test_halving_leaves_the_best():
    means = np.linspace(0, 1, 20)
    table = Table(rows(means))
    known = [Scores(*[rows([0.5])[0]] * 2, 1)]
    result, _ = successive_halving(table, list(range(20)), value, lambda index, mean: mean + 10, known, keep=3)
    assert {17, 18, 19} <= set(result)
    assert len(result) < 8
    assert table.asked < 0.6 * 20 * N


def test_switched_off_all_stay():
    table = Table(rows([0, 1]))
    known = [Scores(*[rows([0.5])[0]] * 2, 1)]
    assert len(successive_halving(table, [0, 1], value, lambda index, mean: -1.0, known, racing=False)[0]) == 2
    assert len(successive_halving(table, [0, 1], value, lambda index, mean: -1.0, [])[0]) == 2


def test_bounds_hold_as_often_as_they_say():
    inside = []
    for seed in range(300):
        reference, candidate = rows([0, 0.1], noise=0.5, seed=seed)
        bound = estimate(candidate[:50], [reference], z=1.64)
        inside.append(bound.low <= candidate.mean() <= bound.high)
    assert 0.87 <= np.mean(inside) <= 0.98


def test_the_closest_reference_is_taken():
    near, candidate = rows([0, 0.1], noise=0.01)
    far = np.random.default_rng(9).normal(size=N)
    both = estimate(candidate[:50], [far, near])
    assert both == estimate(candidate[:50], [near])
    assert both.high - both.low < 0.2 * (lambda e: e.high - e.low)(estimate(candidate[:50], [far]))


def test_equal_so_far_is_not_equal_for_sure():
    row = rows([0])[0]
    bound = estimate(row[:50], [row])
    assert bound.low < row.mean() < bound.high


def test_all_seen_is_known():
    one, two = rows([0, 1])
    bound = estimate(one, [two])
    assert bound.low == pytest.approx(one.mean()) == pytest.approx(bound.high)
