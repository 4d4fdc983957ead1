"""What can be known at the start is said before any work."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from sieve.run import pipeline
from sieve.tasks import load_task
from tests.sieve.run.test_resume import arguments
from tests.sieve.test_cli import own_cache, run  # noqa: F401 - fixtures


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("--search", "budget", "--no-surrogate"), "nothing to go by"),
        (("--search", "uniform"), "--search uniform does not read it"),
        (("--population", 1), "population"),
        (("--kept", 2), "--kept"),
        (("--kept", 0.001), "the smallest keeps"),
    ],
)
def test_bad_options(run, world, tmp_path, change, words):  # noqa: F811
    code, _, err = run(*arguments(world, tmp_path / "out"), *change)
    assert code == 2
    assert words in err
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out.unfinished").exists()


@pytest.mark.parametrize("place", ["/proc/nope/out", "file/out"])
def test_an_output_that_cannot_be_made_fails_at_once(run, world, tmp_path, monkeypatch, place):  # noqa: F811
    monkeypatch.setattr("sieve.run.pipeline.load_model", lambda *given: pytest.fail("work has begun"))
    (tmp_path / "file").write_text("")
    code, _, err = run(*arguments(world, tmp_path / place))
    assert code == 4
    assert err.count("\n") == 1
    assert "cannot write" in err


@pytest.mark.parametrize("split", ["calibration", "fitness", "validation", "test"])
def test_a_row_that_cannot_be_scored_is_named_before_any_work(run, world, tmp_path, monkeypatch, split):  # noqa: F811
    """Longer than the context, in whichever split it is."""
    shutil.copytree(Path(world.task).parent, tmp_path / "task")
    data = tmp_path / "task" / "legs.jsonl"
    task = load_task(tmp_path / "task" / "legs.yaml")
    number = int(task.splits()[split][-1].where.split()[-1])
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    sides = [{"choices": [" few", " many"]} for _ in rows]
    sides[number - 1] = {"choices": [" few" * 200, " many"]}
    data.write_text("".join(json.dumps(row | side) + "\n" for row, side in zip(rows, sides, strict=True)))
    text = (tmp_path / "task" / "legs.yaml").read_text().replace('choices: [" few", " many"]', "choices: choices")
    (tmp_path / "task" / "legs.yaml").write_text(text)
    monkeypatch.setattr("sieve.run.measured.evaluate", lambda *given: pytest.fail("work has begun"))
    monkeypatch.setattr(pipeline, "dense_scores", lambda *given: pytest.fail("work has begun"))
    code, _, err = run("prune", world.model, "--task", tmp_path / "task" / "legs.yaml", "--output", tmp_path / "out")
    assert code == 2
    assert "longer than the model's context" in err
    assert f"split, legs.jsonl line {number})" in err
    assert not list(tmp_path.glob("out*"))


def test_a_full_disk_is_found_before_any_work(run, world, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr(pipeline, "dense_scores", lambda *given: pytest.fail("work has begun"))
    monkeypatch.setattr("sieve.utils.files.shutil.disk_usage", lambda place: SimpleNamespace(free=1 << 20))
    code, _, err = run(*arguments(world, tmp_path / "out"))
    assert code == 4
    assert "may need 0.1 GiB and its disk has 0.0 GiB left" in err
    assert not list(tmp_path.glob("out*"))
