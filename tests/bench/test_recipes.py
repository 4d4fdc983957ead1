"""What options buy, on a tiny model: every set of them, resumed, and as a table."""

import json

import pytest

from bench import recipes
from bench.cells import Results


@pytest.fixture
def files(tmp_path):
    return ["--results", str(tmp_path / "rows.jsonl")]


def test_run_and_table(world, tmp_path, files, capsys):
    run = ["run", *files, "--model", world.model, "--tasks", world.task, "--seeds", "0", "--tolerance", "0.9"]
    recipes.main(run)
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert [row["options"] for row in rows] == list(recipes.OPTIONS)
    for row in rows:
        assert 0 < row["model_removed"] < row["removed"] < 1
        assert row["difference"]["accuracy"]["test"]["value"] == -row["lost"]
        assert sum(row["stages"].values()) < row["seconds"] + 0.1  # which are rounded to tenths
        assert ("refit" in row["stages"]) == ("refit" in row["options"])
    recipes.main(run)
    assert len((tmp_path / "rows.jsonl").read_text().splitlines()) == len(rows)

    capsys.readouterr()
    recipes.main(["table", *files])
    printed = capsys.readouterr().out
    assert f"| loss_aware, shared | {rows[3]['removed']:.1%} | {rows[3]['removed']:.1%} | " in printed
    assert printed.count("\n") == 4 + len(rows)
    assert "ε = 90%" in printed


def test_a_model_that_loses_nothing_counts_as_none(world, files, tmp_path, monkeypatch):
    """A tolerance that nothing meets is an answer, too: the mean of the seeds must count it."""

    def impossible(recipe, output):
        raise recipes.ToleranceError("nothing is within the tolerance")

    monkeypatch.setattr(recipes, "prune", impossible)
    recipes.main(
        ["run", *files, "--model", world.model, "--tasks", world.task, "--seeds", "0", "--options", "loss_aware"]
    )
    row = next(iter(Results(tmp_path / "rows.jsonl", recipes.KEY)))
    assert (row["removed"], row["lost"], row["failure"]) == (0.0, 0.0, "nothing is within the tolerance")
    assert "| loss_aware | 0.0% | 0.0% | 0.0% | 0.000 | 0.000 | " in recipes.table(
        Results(tmp_path / "rows.jsonl", recipes.KEY)
    )
