"""The comparison of searches on a tiny model: every goal, resumed, as tables and as a plot."""

import json

import pytest

from bench import search_quality


@pytest.fixture
def options(world, tmp_path):
    files = ["--results", str(tmp_path / "rows.jsonl"), "--cache", str(tmp_path / "cache"), "--model", world.model]
    return [*files, "--task", world.task, "--seeds", "0", "--tokens", "600", "--share", "0.0005"]


def test_run_table_plot(options, world, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(search_quality, "TOLERANCE", 0.5)
    monkeypatch.setattr(search_quality, "KEPT", (0.6,))
    search_quality.main(["run", *options])
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    cells = {(row["goal"], row["search"]): row for row in rows}
    assert len(cells) == len(rows) == 1 + 2 * 3 + 1
    for search in search_quality.SEARCHES:
        assert 0.4 - 1e-9 <= cells["kept 0.6", search]["removed"] < 1
        assert "scores" in cells["epsilon 0.5", search] or "failure" in cells["epsilon 0.5", search]
    assert cells["kept 0.6", "ga"]["options"]["budget"] == 2000
    front = cells["front", "pareto"]["front"]
    assert [point["removed"] for point in front] == sorted((p["removed"] for p in front), reverse=True)
    before = (tmp_path / "rows.jsonl").read_text()
    search_quality.main(["run", *options])
    assert (tmp_path / "rows.jsonl").read_text() == before

    capsys.readouterr()
    search_quality.main(["table", *options])
    printed = capsys.readouterr().out
    assert printed.count("| 0.6 | ") == 3
    assert "| ga |" in printed
    search_quality.main(["plot", *options, "--output", str(tmp_path / "curve.png")])
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_the_most_telling_cells_come_first():
    """The tolerance and one size for every task and seed, and then the curve of the first ones."""
    cells = list(search_quality.cells(["geography", "piqa"], [0, 1], ["uniform", "ga"]))
    goals = ["dense", "epsilon 0.05", "epsilon 0.05", "kept 0.6", "kept 0.6"]
    assert [cell["goal"] for cell in cells[:20]] == goals * 4
    assert [cell["seed"] for cell in cells[:20]] == [0] * 10 + [1] * 10
    assert {(cell["task"], cell["seed"]) for cell in cells[20:]} == {("geography", 0)}
    assert [cell["goal"] for cell in cells[20:]] == ["kept 0.4"] * 2 + ["kept 0.8"] * 2 + ["front"]
    assert len({tuple(cell.values()) for cell in cells}) == len(cells)
