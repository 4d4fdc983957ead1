"""A search killed at any moment ends, resumed, with the result of one that was not."""

import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from sieve.unfinished import Unfinished, unfinished_recipe
from tests.sieve.test_cli import own_cache, run  # noqa: F401 - fixtures

QUICK = ("--search", "ga", "--tolerance", 0.3, "--generations", 2, "--population", 4, "--offspring", 6,
         "--calibration-tokens", 1000, "--rank-multiple", 4, "--bottlenecks", 2, "--kept", 0.6)  # fmt: skip


def arguments(world, output):
    return ("prune", world.model, "--task", world.task, "--output", output, *QUICK)


def process(*given):
    command = [sys.executable, "-m", "sieve", *map(str, given)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def result(folder):
    report = json.loads((folder / "report.json").read_text())
    kept = {key: report["search"][key] for key in ("candidates", "evaluations", "evaluated", "validation_attempts")}
    return report["kept"], report["accuracy"], report["bottlenecks"], kept


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
        lines = journal.read_bytes().count(b"\n") if journal.exists() else 0
        running = process(*command)
        while running.poll() is None and not (journal.exists() and journal.read_bytes().count(b"\n") >= lines + 4):
            time.sleep(0.01)
        time.sleep(draw.random() / 20)
        assert running.poll() is None, running.communicate()
        running.send_signal(signal.SIGKILL)
        running.wait()
        assert not output.exists()
        command = ("prune", "--resume", output)
    code, _, err = run("prune", "--resume", output, "--tolerance", 0.2)
    assert code == 2
    assert "changed since are recipe" in err
    code, _, err = run(*arguments(world, output))
    assert code == 2
    assert "--resume" in err
    before = journal.read_bytes()
    with monkeypatch.context() as patched:  # the disk is full after two more lines
        patched.setattr("sieve.fitness.journal.os", full_after(2))
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


def test_nothing_to_resume(run, tmp_path):  # noqa: F811
    code, _, err = run("prune", "--resume", tmp_path / "none")
    assert code == 2
    assert "no interrupted search" in err


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("--search", "budget", "--no-surrogate"), "nothing to go by"),
        (("--search", "uniform", "--paper"), "--search ga"),
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


def test_a_full_disk_leaves_something_to_resume(tmp_path, world):
    from sieve.errors import InputError, StorageError
    from sieve.recipe import Recipe

    recipe = Recipe(world.model, world.task, search="ga")
    for error, left in ((StorageError("full"), True), (InputError("bad"), False)):
        unfinished = Unfinished(tmp_path / "out", recipe, resume=False)
        with pytest.raises(type(error)), unfinished.search():
            raise error
        assert (tmp_path / "out.unfinished").exists() == left
        if left:
            assert Recipe.load(unfinished_recipe(tmp_path / "out")) == recipe
            unfinished.remove()
