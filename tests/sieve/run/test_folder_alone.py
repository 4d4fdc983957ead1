"""A folder stands alone: resumed and evaluated from anywhere, with its task's data where they are now."""

import json
import shutil
from pathlib import Path

import pytest

from sieve.errors import StorageError
from sieve.run import pipeline
from tests.sieve.test_cli import own_cache, run  # noqa: F401 - fixtures


@pytest.fixture
def moved(run, world, tmp_path, monkeypatch):  # noqa: F811
    """A run begun with relative paths in one folder, killed after its search, and looked at from another one."""
    here, elsewhere = tmp_path / "here", tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.copytree(Path(world.task).parent, here)
    monkeypatch.chdir(here)
    given = ("prune", "model", "--task", "legs.yaml", "--output", "out", "--tolerance", 0.9, "--rank-multiple", 4,
             "--calibration-tokens", 1000, "--search", "uniform", "--method", "output_aligned")  # fmt: skip
    with monkeypatch.context() as patched:
        patched.setattr(pipeline, "save", lambda *some, **more: (_ for _ in ()).throw(StorageError("the disk is full")))
        assert run(*given)[0] == 4
    monkeypatch.chdir(elsewhere)
    return here


def test_a_folder_stands_alone(run, moved, tmp_path):  # noqa: F811
    """Resumed and evaluated from another folder, without the task's file, its data elsewhere or changed."""
    (moved / "legs.yaml").unlink()
    output = moved / "out"
    code, _, err = run("prune", "--resume", "../here/out")
    assert code == 0, err
    report = json.loads((output / "report.json").read_text())
    assert report["task"] == "legs"
    code, out, err = run("eval", "../here/out", "--json")
    assert code == 0, err
    assert json.loads(out)["accuracy"] == report["accuracy"]["pruned"]["test"]
    assert json.loads(out)["same_data"] is True
    card = (output / "README.md").read_text()
    assert "from `model` for" in card

    rows = (moved / "legs.jsonl").read_text().splitlines(keepends=True)
    shutil.move(moved / "legs.jsonl", tmp_path / "moved.jsonl")
    code, _, err = run("eval", output)
    assert code == 2
    assert err.count("\n") == 1
    assert "--data PATH" in err
    code, out, err = run("eval", output, "--data", "../moved.jsonl", "--json")
    assert (code, json.loads(out)["same_data"]) == (0, True), err
    (tmp_path / "moved.jsonl").write_text("".join(rows[:-9]))
    code, out, err = run("eval", output, "--data", tmp_path / "moved.jsonl")
    assert code == 0
    assert "its report is of other data" in err
    assert "not of the data" in out
    code, _, err = run(
        "prune", "--config", output / "recipe.yaml", "--output", "again", "--data", "../moved.jsonl", "-q"
    )
    assert code == 0, err
    assert json.loads(run("eval", "again", "--json")[1])["same_data"] is True


def test_a_folder_of_an_earlier_version_is_read(run, moved, monkeypatch):  # noqa: F811
    """It has a recipe with paths of the folder that it was made in, and no task."""
    output = moved / "out"
    assert run("prune", "--resume", output)[0] == 0
    (output / "task.yaml").unlink()
    recipe = (output / "recipe.yaml").read_text()
    (output / "recipe.yaml").write_text(recipe.replace("task: task.yaml", "task: legs.yaml"))
    code, _, err = run("eval", output)
    assert code == 2
    assert "there is no legs.yaml here: use --task FILE" in err
    assert run("eval", output, "--task", moved / "legs.yaml")[0] == 0
    monkeypatch.chdir(moved)
    assert run("eval", output)[0] == 0


def test_changed_data_is_refused_by_name_before_any_work(run, moved, monkeypatch):  # noqa: F811
    data = moved / "legs.jsonl"
    rows = data.read_text().splitlines(keepends=True)
    data.write_text("".join(rows[1:]))
    with monkeypatch.context() as patched:
        patched.setattr("sieve.run.calibrated.calibrate", lambda *given, **more: pytest.fail("work has begun"))
        code, _, err = run("prune", "--resume", moved / "out")
    assert code == 2
    assert "the task's data has changed since this run began" in err
    assert "examples, now" in err
    assert "out.unfinished and start with --output" in err
    data.write_text("".join(rows))
    assert run("prune", "--resume", moved / "out")[0] == 0
