"""What a pruned model keeps of other tasks, on a tiny model: all stages of one source, resumed, and as a table."""

import json

import pytest

from bench import generalisation
from bench.cells import Results
from sieve.tasks import Task
from tests.sieve.conftest import ROWS, TASK, write_task

TEXTS = [{"text": f"The {animal} has {legs} legs."} for animal in ("ant", "bee", "cat", "dog") for legs in range(40)]


@pytest.fixture
def sources(world, tmp_path, monkeypatch):
    """The tiny world's task, its copy as the other data set, and texts of our own."""
    copy = write_task(tmp_path / "copy.yaml", TASK, ROWS)
    monkeypatch.setattr(generalisation, "OTHERS", {world.task: copy})
    monkeypatch.setattr(generalisation, "general_text", lambda: Task("general", "perplexity", TEXTS, "{text}"))


@pytest.mark.usefixtures("sources")
def test_run_and_table(world, tmp_path, capsys):
    file, folder = tmp_path / "rows.jsonl", tmp_path / "models"
    run = ["run", "--results", str(file), "--model", world.model, "--sources", world.task, "--folder", str(folder)]
    generalisation.main(run)
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [row["stage"] for row in rows[::3]] == ["dense", "pruned", "label-free", "tuned"]
    for stage in range(4):
        own, other, text = rows[3 * stage : 3 * stage + 3]
        assert own["scores"] == other["scores"]
        assert len(text["scores"]["loglik"]) == 32
    assert all(rows[0]["scores"]["loglik"] != rows[3 * stage]["scores"]["loglik"] for stage in (1, 2, 3))
    assert len(list(folder.iterdir())) == 3

    generalisation.main(run)
    assert len(file.read_text().splitlines()) == len(rows)
    capsys.readouterr()
    generalisation.main(["table", "--results", str(file)])
    printed = capsys.readouterr().out
    assert "50% removed | label-free | " in printed
    # A difference of the same rows, which are paired.
    text, dense = (row["scores"]["loglik"] for row in (rows[5], rows[2]))
    assert f"{sum(a - b for a, b in zip(text, dense, strict=True)) / 32:+.3f} [" in printed


def test_a_stage_without_rows_is_left_out(tmp_path):
    results = Results(tmp_path / "rows.jsonl", generalisation.KEY)
    results.add({"source": "piqa", "stage": "dense", "target": "piqa", "seed": 0, "kept": 0.5, "accuracy": 0.5,
                 "loglik": -1.5, "scores": {"right": "10", "loglik": [-1, -2]}})  # fmt: skip
    assert generalisation.table(results).splitlines()[-1] == "| `piqa` | dense | 0.500 | `commonsense_qa`: – | – |"
