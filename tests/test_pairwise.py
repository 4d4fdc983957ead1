"""The helper that replaces all combinations of parameters by those in which every two values meet."""

from itertools import combinations, product

import pytest

from tests.pairwise import covering, pairwise


@pytest.mark.parametrize("sizes", [(3,), (2, 3), (5, 4, 4, 3), (6, 4, 2, 2), (4, 4, 4, 5), (27, 5, 3), (1, 1, 7)])
def test_every_pair_is_there(sizes):
    rows = covering(sizes)
    assert len(set(rows)) == len(rows)
    assert all(index < size for row in rows for index, size in zip(row, sizes, strict=True))
    for i, j in combinations(range(len(sizes)), 2):
        assert {(row[i], row[j]) for row in rows} == set(product(range(sizes[i]), range(sizes[j])))
    largest = sorted(sizes)[-2:]
    assert len(rows) <= 1.6 * (largest[0] * largest[-1] if len(sizes) > 1 else sizes[0])


def test_parameters_that_go_together():
    mark = pairwise(a=[1, 2], b_and_c=[(3, 4), (5, 6)]).mark
    assert mark.args[0] == ["a", "b", "c"]
    assert sorted(mark.args[1]) == [(1, 3, 4), (1, 5, 6), (2, 3, 4), (2, 5, 6)]
