"""Files of results: what was finished stays and is not done again, and differences are those of the same examples."""

import numpy as np
import pytest

from bench.cells import Results, differences, mean_differences, packed, unpacked, work_through
from sieve.errors import InputError
from sieve.evaluation.scoring import Scores


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


def test_mean_differences_do_not_count_examples():
    """Three questions weigh as much as three hundred; of one row it is the difference itself."""
    draw = np.random.default_rng(0)

    def row(loglik):
        return {"scores": packed(Scores((loglik > 0).astype(float), loglik, 1))}

    few, many = (np.round(draw.normal(size=n), 3) for n in (3, 300))
    rows, references = [row(few + 1), row(many)], [row(few), row(np.zeros(300))]
    loglik = mean_differences(rows, references)[1]
    assert loglik.value == pytest.approx((1 + many.mean()) / 2, abs=1e-9)
    spread = many.std() / np.sqrt(300) / 2  # the three differences are all alike and add nothing
    assert loglik.high - loglik.low == pytest.approx(2 * 1.96 * spread, rel=0.1)
    alone = mean_differences(rows[1:], references[1:])
    assert alone[0].value == differences(rows[1:], references[1:])[0].value


def test_scores_of_other_examples_are_no_pair():
    short, long = ({"scores": packed(Scores(np.zeros(n), np.zeros(n), 1))} for n in (3, 4))
    with pytest.raises(InputError, match="same examples"):
        differences([short], [long])
