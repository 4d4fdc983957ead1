"""Pairs and masks at equal numbers, on a tiny model."""

import pytest

from bench.methods import residual
from sieve.models.matrix import Matrix


@pytest.mark.parametrize("share", residual.SHARES)
def test_all_shares_have_as_many_numbers(share):
    matrix = Matrix("w", 64, 96, 0)
    rank, a_row = residual.numbers(matrix, 0.5, share)
    spent = rank * (64 + 96) + 64 * a_row
    assert 0.97 * 0.5 * 64 * 96 < spent <= 0.5 * 64 * 96
    assert (rank > 0) == (share > 0)
    assert (a_row > 0) == (share < 1)


def test_table(world, capsys):
    residual.main(["--model", world.model, "--task", world.task, "--tokens", "600", "--examples", "20"])
    lines = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")][1:]
    assert [float(line[0].removeprefix("| ")) for line in lines] == list(residual.SHARES)
    errors = [float(line[1]) for line in lines]
    assert all(0 < error < 1 for error in errors)
    assert errors[2] < errors[4]  # a pair leaves something that a mask can hold
