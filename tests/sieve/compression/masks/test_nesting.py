"""Nested masks: counts, groups, patterns, nesting."""

import pytest
import torch

from sieve.compression.masks.config import PATTERNS
from sieve.compression.masks.matrix import MaskedMatrix
from sieve.compression.masks.nesting import keep_n_of_m, nested_thresholds
from sieve.compression.plan import Plan
from sieve.models.matrix import DENSE


def numbers(m, n, seed=0):
    return torch.rand(m, n, generator=torch.Generator().manual_seed(seed))


def test_rows_keep_their_largest_at_every_rank():
    scores = numbers(5, 11)
    places = nested_thresholds(scores)
    for rank in range(1, 12):
        for row, place in zip(scores, places, strict=True):
            kept = {j for j in range(11) if place[j] <= rank}
            assert kept == set(sorted(range(11), key=lambda j: -row[j])[:rank])


def test_a_layer_keeps_its_largest_and_as_many():
    scores = numbers(5, 11)
    places = nested_thresholds(scores, compare="layer")
    for rank in range(1, 12):
        threshold = sorted(scores.flatten().tolist(), reverse=True)[rank * 5 - 1]
        assert torch.equal(places <= rank, scores >= threshold)


def test_rows_are_sorted_a_few_at_a_time(monkeypatch):
    scores = numbers(7, 11)
    whole = nested_thresholds(scores)
    for some in (1, 30):
        monkeypatch.setattr("sieve.compression.masks.nesting._SORTED", some)
        assert torch.equal(nested_thresholds(scores), whole)


@pytest.mark.parametrize("pattern", ["2:4", "4:8"])
def test_patterns_keep_the_largest_of_every_group(pattern):
    kept, of = PATTERNS[pattern]
    scores = numbers(6, 24)
    mask = nested_thresholds(scores, pattern) <= 24 * kept // of
    for row in range(6):
        for start in range(0, 24, of):
            group = scores[row, start : start + of]
            assert mask[row, start : start + of].sum() == kept
            assert group[mask[row, start : start + of]].min() > group[~mask[row, start : start + of]].max()


def test_ties_are_broken_by_place_and_counts_stay():
    assert nested_thresholds(torch.zeros(3, 4)).tolist() == [[1, 2, 3, 4]] * 3
    assert nested_thresholds(torch.zeros(2, 3), compare="layer").tolist() == [[1, 1, 2], [2, 3, 3]]
    assert keep_n_of_m(torch.zeros(1, 8), 2, 4).tolist() == [[True, True, False, False] * 2]


def test_wide_matrices_need_more_than_16_bits():
    assert nested_thresholds(numbers(1, 40_000)).max() == 40_000
    assert nested_thresholds(numbers(1, 300)).dtype == torch.int16


@pytest.mark.parametrize("multiple", [1, 4])
def test_rank_at_is_the_inverse_of_size(multiple):
    matrix = MaskedMatrix("a", 6, 40, 0)
    for percent in range(1, 101):
        rank = matrix.rank_at(percent / 100, multiple)
        if rank == DENSE:
            assert percent / 100 * 40 > 40 - multiple
            continue
        assert rank % multiple == 0
        assert matrix.size(rank) >= percent / 100 * 240 - 1e-6
        assert rank == multiple or matrix.size(rank - multiple) < percent / 100 * 240
    assert matrix.max_rank == 39
    assert matrix.size(DENSE) == 240


def test_patterns_have_one_rank():
    matrix = MaskedMatrix("a", 6, 40, 0, pattern="2:4")
    assert {matrix.rank_at(kept, 8) for kept in (0.01, 0.3, 0.5, 0.99)} == {20}
    assert matrix.rank_at(1.0) == DENSE
    assert matrix.size(20) == 120
    odd = MaskedMatrix("b", 6, 42, 0, pattern="2:4")
    assert odd.rank_at(0.5) == DENSE
    assert Plan.uniform([matrix, odd], 0.5) == {"a": 20, "b": DENSE}
