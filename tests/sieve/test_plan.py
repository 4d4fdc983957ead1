import pytest

from sieve.errors import InputError
from sieve.plan import DENSE, Matrix, Plan

SQUARE = Matrix("a", 64, 64, 0)
WIDE = Matrix("b", 96, 32, 1)
MATRICES = {"a": SQUARE, "b": WIDE}


@pytest.mark.parametrize("matrix", [SQUARE, WIDE, Matrix("c", 1, 50, 0), Matrix("d", 7, 5, 0)])
def test_max_rank_is_the_last_that_saves(matrix):
    r = matrix.max_rank
    assert r == 0 or matrix.size(r) < matrix.parameters
    assert matrix.size(r + 1) >= matrix.parameters


@pytest.mark.parametrize("multiple", [1, 8, 5])
def test_rank_at_rounds_up_to_the_multiple(multiple):
    for percent in range(1, 101):
        rank = SQUARE.rank_at(percent / 100, multiple)
        if rank != DENSE:
            assert rank % multiple == 0
            assert SQUARE.size(rank) < SQUARE.parameters
            assert SQUARE.size(rank) >= percent / 100 * SQUARE.parameters - 1e-6
            assert rank == multiple or SQUARE.size(rank - multiple) < percent / 100 * SQUARE.parameters
    assert SQUARE.rank_at(1.0) == DENSE
    assert SQUARE.rank_at(1e-9, multiple) == multiple


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
    for text in ("[1]", "{"):
        with pytest.raises(InputError, match="plan"):
            Plan.from_json(text)


@pytest.mark.parametrize(
    ("plan", "message"),
    [({"zz": 3}, "'zz'"), ({"a": 0}, "1…64"), ({"a": "thin"}, "'thin'"), ({"a": 65}, "65"), ({"a": True}, "True")],
)
def test_check_names_what_is_wrong(plan, message):
    with pytest.raises(InputError, match=message):
        Plan(plan).check(MATRICES)
