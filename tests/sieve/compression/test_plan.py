import pickle
from dataclasses import replace

import pytest

from sieve.compression.plan import Plan
from sieve.errors import InputError
from sieve.models.matrix import DENSE, Matrix

SQUARE = Matrix("a", 64, 64, 0)
WIDE = Matrix("b", 96, 32, 1)
MATRICES = {"a": SQUARE, "b": WIDE}


@pytest.mark.parametrize("matrix", [SQUARE, WIDE, Matrix("c", 1, 50, 0), Matrix("d", 7, 5, 0)])
@pytest.mark.parametrize("pivoted", [False, True])
def test_max_rank_is_the_last_that_saves(matrix, pivoted):
    matrix = replace(matrix, pivoted=pivoted)
    r = matrix.max_rank
    assert r == 0 or matrix.size(r) < matrix.parameters
    assert matrix.size(r + 1) >= matrix.parameters


@pytest.mark.parametrize("multiple", [1, 8, 5])
@pytest.mark.parametrize("matrix", [SQUARE, WIDE, replace(SQUARE, pivoted=True), replace(WIDE, pivoted=True)])
def test_rank_at_rounds_up_to_the_multiple(matrix, multiple):
    for percent in range(1, 101):
        rank = matrix.rank_at(percent / 100, multiple)
        if rank != DENSE:
            assert rank % multiple == 0
            assert matrix.size(rank) < matrix.parameters
            assert matrix.size(rank) >= percent / 100 * matrix.parameters - 1e-6
            assert rank == multiple or matrix.size(rank - multiple) < percent / 100 * matrix.parameters
    assert matrix.rank_at(1.0) == DENSE
    assert matrix.rank_at(1e-9, multiple) == multiple


def test_rank_at_is_the_inverse_of_size():
    for matrix in (SQUARE, WIDE, replace(SQUARE, pivoted=True), replace(WIDE, pivoted=True)):
        for rank in range(1, matrix.max_rank + 1):
            assert matrix.rank_at(matrix.size(rank) / matrix.parameters) == rank


def test_a_pivoted_pair_saves_m_minus_r_times_n_minus_r():
    matrix = replace(WIDE, pivoted=True)
    for rank in range(1, 32):
        assert matrix.parameters - matrix.size(rank) == (96 - rank) * (32 - rank) > 0
    assert matrix.size(DENSE) == matrix.size(32) == matrix.parameters


def test_accounting():
    plan = Plan(a=16)
    assert plan.kept(MATRICES) == {"a": 16 * 128 / 4096, "b": 1.0}
    assert plan.size(MATRICES) == 16 * 128 + 96 * 32
    assert plan.prunable_removed(MATRICES) == pytest.approx(2048 / (4096 + 3072))
    assert Plan(a=DENSE).ranks() == {}


def test_json_round_trip():
    plan = Plan.uniform(MATRICES.values(), 0.5, 8)
    assert plan == {"a": 16, "b": 16}
    assert Plan.from_json(plan.to_json()) == plan
    assert not Plan.from_json(plan.to_json()).pivoted
    for text in ("[1]", "{"):
        with pytest.raises(InputError, match="plan"):
            Plan.from_json(text)


def test_a_plan_knows_whether_its_pairs_are_pivoted():
    plan = Plan.uniform([replace(matrix, pivoted=True) for matrix in MATRICES.values()], 0.5, 8)
    assert plan.pivoted
    assert plan == {"a": 24, "b": 16}
    again = Plan.from_json(plan.to_json())
    assert (again, again.pivoted) == (plan, True)
    assert Plan(plan).pivoted
    assert pickle.loads(pickle.dumps(plan)).pivoted
    assert not Plan(plan, pivoted=False).pivoted
    assert not Plan(dict(plan)).pivoted


@pytest.mark.parametrize(
    ("plan", "message"),
    [({"zz": 3}, "'zz'"), ({"a": 0}, "1…64"), ({"a": "thin"}, "'thin'"), ({"a": 65}, "65"), ({"a": True}, "True")],
)
def test_check_names_what_is_wrong(plan, message):
    with pytest.raises(InputError, match=message):
        Plan(plan).check(MATRICES)
