import math

import numpy as np
import pytest

from sieve.errors import InputError
from sieve.evaluation.confidence import bootstrap, paired, resolution, standard_error


def coins(n, p, seed=0):
    return (np.random.default_rng(seed).random(n) < p).astype(float)


def test_standard_error_of_an_accuracy():
    values = np.array([1.0] * 77 + [0.0] * 23)
    assert standard_error(values) == pytest.approx(math.sqrt(0.77 * 0.23 / 99))


def test_one_value_tells_nothing():
    assert standard_error([1.0]) == math.inf


def test_bootstrap_agrees_with_the_normal_approximation():
    values = coins(1000, 0.8)
    interval = bootstrap(values)
    assert interval.value == values.mean()
    assert interval.n == 1000
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * standard_error(values), rel=0.1)


def test_bootstrap_covers_the_truth_as_often_as_it_says():
    covered = [
        interval.low <= 0.7 <= interval.high
        for interval in (bootstrap(coins(150, 0.7, seed), resamples=400) for seed in range(200))
    ]
    assert 0.88 < np.mean(covered) <= 0.99


def test_bootstrap_is_deterministic_in_its_seed():
    values = np.random.default_rng(0).normal(size=50)
    assert bootstrap(values, seed=1) == bootstrap(values, seed=1) != bootstrap(values, seed=2)


def test_drawing_in_parts_changes_only_the_draws(monkeypatch):
    values = coins(100, 0.5)
    whole = bootstrap(values)
    monkeypatch.setattr("sieve.evaluation.confidence._CELLS", 30_000)  # 300 resamples at a time, the last part smaller
    assert bootstrap(values).low == pytest.approx(whole.low, abs=0.02)


def test_level_widens():
    values = coins(200, 0.5)
    narrow, wide = bootstrap(values, level=0.5), bootstrap(values, level=0.99)
    assert wide.low < narrow.low < narrow.high < wide.high


def test_pairing_cancels_what_both_share():
    draw = np.random.default_rng(0)
    difficulty = draw.normal(size=300)
    dense, pruned = difficulty, difficulty - 0.1 + 0.01 * draw.normal(size=300)
    interval = paired(pruned, dense)
    assert interval.low < -0.1 < interval.high
    assert interval.high - interval.low < 0.01 < bootstrap(pruned).high - bootstrap(pruned).low


def test_pairing_needs_the_same_examples():
    with pytest.raises(InputError, match="same examples, got 3 and 2"):
        paired([1, 2, 3], [1, 2])


@pytest.mark.parametrize("values", [[], [[1.0, 2.0]]])
def test_no_scores(values):
    with pytest.raises(InputError, match="at least one number"):
        bootstrap(values)


class TestResolution:
    def test_example_of_the_design(self):
        """.77 on 500 examples has a standard error of .019; 5 % of it is .038, about two of them."""
        limits = resolution([1.0] * 385 + [0.0] * 115, 0.05)
        assert limits.standard_error == pytest.approx(0.019, abs=5e-4)
        assert limits.tolerance == pytest.approx(0.0385)
        assert limits.needed_n == pytest.approx(480, abs=5)
        assert limits.sufficient

    def test_too_few_names_how_many_would_do(self):
        limits = resolution([1.0] * 77 + [0.0] * 23, 0.05)
        assert not limits.sufficient
        assert f"{limits.needed_n:,} examples would do" in str(limits)
        more = resolution([1.0] * 77 * 6 + [0.0] * 23 * 6, 0.05)
        assert more.sufficient
        assert "would do" not in str(more)

    def test_that_many_do(self):
        needed = resolution([1.0, 1.0, 1.0, 0.0] * 10, 0.1).needed_n
        assert resolution(([1.0, 1.0, 1.0, 0.0] * needed)[: needed + needed % 4], 0.1).sufficient

    def test_no_number_tells_no_loss(self):
        limits = resolution([1.0, 0.0], 0.0)
        assert not limits.sufficient
        assert "no number" in str(limits)

    def test_a_few_right_answers_are_no_certainty(self):
        assert not resolution([1.0] * 5, 0.05).sufficient
        assert resolution([1.0] * 500, 0.05).sufficient

    def test_nothing_right(self):
        assert not resolution([0.0] * 50, 0.05).sufficient
