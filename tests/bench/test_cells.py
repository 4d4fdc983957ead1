"""Files of results: what was finished stays and is not done again, and differences are those of the same examples."""

import numpy as np
import pytest

from bench.cells import Results, differences, packed, unpacked, work_through
from sieve.errors import InputError
from sieve.fitness import Scores


def test_a_stopped_run_goes_on(tmp_path):
    """A torn line counts for nothing, and what is added after it can be read."""
    path = tmp_path / "rows.jsonl"
    results = Results(path, ("task", "seed"))
    results.add({"task": "a", "seed": 0, "value": 1})
    results.add({"task": "a", "seed": 1, "value": 2})
    path.write_text(path.read_text()[:-8])
    again = Results(path, ("task", "seed"))
    assert {"task": "a", "seed": 0} in again
    assert {"task": "a", "seed": 1} not in again
    again.add({"task": "b", "seed": 1, "value": 3})
    assert [row["value"] for row in Results(path, ("task", "seed"))] == [1, 3]
    assert [row["value"] for row in Results(path, ("task", "seed")).find(seed=1)] == [3]


def test_a_cell_that_fails_is_left_for_the_next_run(tmp_path, capsys):
    results = Results(tmp_path / "rows.jsonl", ("task",))
    cells = [{"task": name} for name in "abc"]

    def measure(cell):
        if cell["task"] == "b":
            raise InputError("no b today")
        return {"accuracy": 0.5}

    assert work_through(results, cells, measure, {"model": "tiny"}) == 1
    assert "no b today" in capsys.readouterr().err
    assert [row["task"] for row in Results(results.path, ("task",))] == ["a", "c"]
    assert work_through(results, cells, lambda cell: {"accuracy": 1.0}, {"model": "tiny"}) == 0
    assert [row["accuracy"] for row in results] == [0.5, 0.5, 1.0]
    assert all(row["model"] == "tiny" and row["commit"] and row["torch"] for row in results)


def test_scores_packed_and_paired():
    draw = np.random.default_rng(0)
    rows = []
    for shift in (0.0, 0.25):
        loglik = np.round(draw.normal(size=300), 3)
        rows.append(({"scores": packed(Scores((loglik > 0).astype(float), loglik - shift, 1))}, loglik - shift))
    for row, loglik in rows:
        right, found = unpacked(row)
        np.testing.assert_allclose(found, loglik, atol=1e-9)
        assert set(right) == {0, 1}
    accuracy, loglik = differences([rows[1][0]], [rows[0][0]])
    assert loglik.value == pytest.approx((rows[1][1] - rows[0][1]).mean(), abs=1e-9)
    assert loglik.low < loglik.value < loglik.high
    assert accuracy.n == 300


def test_scores_of_other_examples_are_no_pair():
    short, long = ({"scores": packed(Scores(np.zeros(n), np.zeros(n), 1))} for n in (3, 4))
    with pytest.raises(InputError, match="same examples"):
        differences([short], [long])
