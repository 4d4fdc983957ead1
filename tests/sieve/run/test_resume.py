"""A search killed at any moment ends, resumed, with the result of one that was not."""

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from sieve.errors import InputError, StorageError
from sieve.run import measured, pipeline
from sieve.run.recipe import Recipe
from sieve.run.resume import ResumableRun, unfinished_recipe
from tests.sieve.test_cli import own_cache, run  # noqa: F401 - fixtures
from tests.tiny_models import tiny_model, tiny_tokenizer

QUICK = ("--method", "output_aligned", "--search", "ga", "--tolerance", 0.3, "--generations", 2, "--population", 4,
         "--offspring", 6, "--calibration-tokens", 1000, "--rank-multiple", 4, "--bottlenecks", 2,
         "--kept", 0.6)  # fmt: skip


def arguments(world, output):
    return ("prune", world.model, "--task", world.task, "--output", output, *QUICK)


def process(*given):
    command = [sys.executable, "-m", "sieve", *map(str, given)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def killed(command, output, lines):
    """Run until the journal has so many lines more, then kill."""
    journal = Path(f"{output}.unfinished") / "journal.txt"

    def written():
        return journal.read_bytes().count(b"\n") if journal.exists() else 0

    wanted = written() + lines
    running = process(*command)
    while running.poll() is None and written() < wanted:
        time.sleep(0.01)
    assert running.poll() is None, running.communicate()
    running.send_signal(signal.SIGKILL)
    running.communicate()
    assert not output.exists()


def result(folder):
    return without_seconds(json.loads((folder / "report.json").read_text()))


def test_report_of_a_genetic_search(run, world, tmp_path):  # noqa: F811
    code, out, err = run(*arguments(world, tmp_path / "out"), "--json")
    assert code == 0, err
    search = json.loads(out)["search"]
    saved = search["saved_by"]
    assert set(saved) == {"prefix", "logits", "padding", "layers", "racing", "surrogate", "journal"}
    assert search["cost_ratio"] == search["layer_tokens_plain"] / search["layer_tokens_spent"]
    assert search["candidates"] > 6
    assert -1 <= search["surrogate_rank_correlation"] <= 1
    assert 1 < search["validation_attempts"] <= 4  # with --kept, of the best and the allocation that it began with
    assert search["seconds"] > 0
    assert len(json.loads(out)["bottlenecks"]) == 2
    assert "generation 2" in err
    assert set(os.listdir(tmp_path)) == {"out", "cache"}
    code, out, _ = run("info", tmp_path / "out")
    assert f"{search['candidates']} candidates" in out


def full_after(lines):
    """`os` for the journal, whose disk takes so many lines more: what is written is there, to sync it fails."""
    left = iter(range(lines))

    def sync(file):
        if next(left, None) is None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    return SimpleNamespace(fsync=sync, SEEK_END=os.SEEK_END)


def test_killed_at_random_moments(run, world, tmp_path, monkeypatch):  # noqa: F811
    """And stopped by a full disk, and resumed: the same result."""
    whole, output = tmp_path / "whole", tmp_path / "out"
    assert run(*arguments(world, whole), "--quiet")[0] == 0
    journal = Path(f"{output}.unfinished") / "journal.txt"
    draw = random.Random(0)
    command = arguments(world, output)
    for _ in range(2):
        killed(command, output, 4 + draw.randrange(8))
        command = ("prune", "--resume", output)
    code, _, err = run("prune", "--resume", output, "--tolerance", 0.2)
    assert code == 2
    assert "changed since are recipe" in err
    code, _, err = run(*arguments(world, output))
    assert code == 2
    assert "--resume" in err
    before = journal.read_bytes()
    with monkeypatch.context() as patched:  # the disk is full after two more lines
        patched.setattr("sieve.searchers.engine.journal.os", full_after(2))
        code, _, err = run("prune", "--resume", output)
    assert code == 4
    assert "No space left" in err
    assert "--resume" in err
    assert not output.exists()
    assert journal.read_bytes().startswith(before)
    code, _, err = run("prune", "--resume", output)
    assert code == 0, err
    assert result(output) == result(whole)
    assert not journal.parent.exists()


def without_seconds(report):
    """Every number that is no time."""
    if not isinstance(report, dict):
        return report
    return {key: without_seconds(value) for key, value in report.items() if key != "seconds"}


@pytest.mark.parametrize(
    "options",
    [
        {"search": "ga", "kept": 0.6, "generations": 2, "population": 4, "offspring": 6, "bottlenecks": 2},
        {"search": "ga", "generations": 2, "population": 4, "offspring": 6, "budget": 40_000},
        {"search": "pareto", "generations": 1, "population": 8, "offspring": 4, "surrogate": False},
        {"search": "budget", "refit": True},
        {"search": "budget", "refit": True, "kept": 0.6},
        {"search": "uniform", "layers": False},
        {"search": "uniform", "method": "wanda"},
    ],
    ids=lambda options: "-".join(str(value) for value in list(options.values())[:2]),
)
def test_the_report_does_not_tell_of_an_interruption(world, tmp_path, monkeypatch, options):
    """Cut anywhere, a journal leads to the same report, field by field; an error after the search loses nothing."""
    recipe = Recipe(world.model, world.task, tolerance=0.5, calibration_tokens=1000, rank_multiple=4, **options)
    output, folder, statistics = tmp_path / "out", tmp_path / "out.unfinished", tmp_path / "statistics.safetensors"
    with monkeypatch.context() as patched:
        patched.setattr(
            pipeline, "save", lambda *given, **more: (_ for _ in ()).throw(StorageError("the disk is full"))
        )
        with pytest.raises(StorageError):
            pipeline.prune(recipe, output, statistics)
    shutil.copytree(folder, tmp_path / "kept")
    lines = (folder / "journal.txt").read_bytes().splitlines(keepends=True)
    shutil.rmtree(folder)
    pipeline.prune(recipe, output, statistics)
    whole = result(output)
    for left in {len(lines), len(lines) // 2, 3}:
        shutil.rmtree(output)
        shutil.copytree(tmp_path / "kept", folder)
        (folder / "journal.txt").write_bytes(b"".join(lines[:left]) + b"torn")
        pipeline.prune(Recipe.load(unfinished_recipe(output)), output, statistics, resume=True)
        assert result(output) == whole
        assert not folder.exists()


def test_nothing_to_resume(run, tmp_path):  # noqa: F811
    code, _, err = run("prune", "--resume", tmp_path / "none")
    assert code == 2
    assert "no interrupted run" in err


def test_two_resumes_at_once(run, world, tmp_path):  # noqa: F811
    """The journal survives: one of them ends with the result, the other is sent away."""
    output = tmp_path / "out"
    killed(arguments(world, output), output, 4)
    together = [process("prune", "--resume", output, "--quiet") for _ in range(2)]
    ends = [(running.wait(), running.communicate()[1]) for running in together]
    assert sorted(code for code, _ in ends) == [0, 2]
    # One that starts late finds the result, or nothing to resume.
    words = ("is being made by", "no interrupted run", "already exists", "cannot read the recipe")
    assert all(any(word in err for word in words) for code, err in ends if code == 2), ends
    assert (output / "report.json").is_file()
    assert not Path(f"{output}.unfinished").exists()


class Killed(BaseException):
    """What stops a run here as a signal does."""


def test_a_run_that_fails_at_the_end_tests_nothing_again(world, tmp_path, monkeypatch):
    """Search, validation and test are in the journal: only what is stored is made again."""
    recipe = Recipe(world.model, world.task, tolerance=0.5, calibration_tokens=1000, rank_multiple=4, search="uniform")
    with monkeypatch.context() as patched:
        patched.setattr(pipeline, "save", lambda *given, **more: (_ for _ in ()).throw(Killed()))
        with pytest.raises(Killed):
            pipeline.prune(recipe, tmp_path / "out")
    asked = []
    for place in ("sieve.run.measured.evaluate", "sieve.compression.low_rank.factors.with_pairs"):
        module, _, name = place.rpartition(".")
        plain = getattr(sys.modules[module], name)
        monkeypatch.setattr(place, lambda *given, plain=plain, place=place: (asked.append(place), plain(*given))[1])
    pipeline.prune(Recipe.load(unfinished_recipe(tmp_path / "out")), tmp_path / "out", resume=True)
    assert not asked


def test_the_dense_model_is_scored_once(world, tmp_path, monkeypatch):
    """Also where a run was killed before its search had any result; of another model these are no scores."""
    recipe = Recipe(world.model, world.task, tolerance=0.5, calibration_tokens=1000, rank_multiple=4, search="uniform")
    plain, scored = measured.evaluate, []
    monkeypatch.setattr(measured, "evaluate", lambda *given: (scored.append(given), plain(*given))[1])
    with monkeypatch.context() as patched:
        patched.setattr(ResumableRun, "_is_of_no_use", lambda self, error: False)  # as SIGKILL leaves it
        patched.setattr("sieve.run.calibrated.calibrate", lambda *given, **more: (_ for _ in ()).throw(Killed()))
        with pytest.raises(Killed):
            pipeline.prune(recipe, tmp_path / "out")
    assert len(scored) == 3
    resumed = Recipe.load(unfinished_recipe(tmp_path / "out"))
    tiny_model("llama", seed=1).save_pretrained(tmp_path / "other")
    tiny_tokenizer().save_pretrained(tmp_path / "other")
    with pytest.raises(InputError, match="changed since are model"):
        pipeline.prune(replace(resumed, model=str(tmp_path / "other")), tmp_path / "out", resume=True)
    report = pipeline.prune(resumed, tmp_path / "out", resume=True)
    assert len(scored) == 4  # with the pruned model's test
    assert report["accuracy"]["dense"] == pipeline.prune(recipe, tmp_path / "whole")["accuracy"]["dense"]


def test_killed_between_saving_and_cleaning_up(world, tmp_path, run, own_cache, monkeypatch):  # noqa: F811
    output = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(ResumableRun, "remove", lambda self: None)
        assert run(*arguments(world, output), "--quiet")[0] == 0
    before = sorted(path.name for path in output.iterdir())
    code, _, error = run("prune", "--resume", output)
    assert code == 2
    assert "is finished, there is nothing to resume" in error
    assert not Path(f"{output}.unfinished").exists()
    assert sorted(path.name for path in output.iterdir()) == before
