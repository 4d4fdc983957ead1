"""A search killed at any moment ends, resumed, with the result of one that was not."""

import errno
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from sieve.errors import InputError, NumericsError, StorageError, ToleranceError, WorkerError
from sieve.run import pipeline
from sieve.run.recipe import Recipe
from sieve.run.resume import Unfinished, unfinished_recipe
from sieve.tasks import load_task
from sieve.tasks.stored import describe_data
from sieve.utils.files import try_lock
from tests.sieve.test_cli import own_cache, run  # noqa: F401 - fixtures
from tests.tiny_models import tiny_model, tiny_tokenizer

QUICK = ("--search", "ga", "--tolerance", 0.3, "--generations", 2, "--population", 4, "--offspring", 6,
         "--calibration-tokens", 1000, "--rank-multiple", 4, "--bottlenecks", 2, "--kept", 0.6)  # fmt: skip


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


def begun(output, world, lines=2, resume=False):
    """An unfinished run whose journal has so many lines, held by this process."""
    unfinished = Unfinished(output, resume).__enter__()
    task = load_task(world.task)
    unfinished.begin(Recipe(world.model, world.task), task, describe_data(task.splits()))
    (unfinished._folder / "journal.txt").write_text("line\n" * lines)
    return unfinished


def fails(unfinished, error, searched=False):
    unfinished._searched = searched
    unfinished.__exit__(type(error), error, None)
    return unfinished._folder.exists()


@pytest.mark.parametrize(
    ("error", "lines", "searched", "resume", "left"),
    [
        (StorageError("full"), 2, False, False, True),
        (WorkerError("lost"), 2, False, False, True),
        (KeyboardInterrupt(), 2, False, False, True),
        (RuntimeError("out of memory"), 2, False, False, True),
        (RuntimeError("out of memory"), 1, False, False, False),  # nothing found yet
        (InputError("bad"), 2, False, False, False),
        (InputError("changed"), 2, False, True, True),  # a refusal to resume takes nothing
        (ToleranceError("none"), 2, False, False, False),
        (ToleranceError("none"), 2, False, True, False),
        (InputError("bad"), 2, True, False, True),  # what was found is kept, whatever comes later
        (NumericsError("infinity"), 2, True, False, True),
    ],
)
def test_what_an_error_leaves_to_resume(tmp_path, world, error, lines, searched, resume, left):
    output = tmp_path / "out"
    unfinished = begun(output, world, lines)
    if resume:
        unfinished._lock.close()
        unfinished = begun(output, world, lines, resume=True)
    assert fails(unfinished, error, searched) == left
    if left:
        recipe = Recipe.load(unfinished_recipe(output))
        assert recipe == Recipe(world.model, f"{output}.unfinished/task.yaml")
        assert load_task(recipe.task).splits() == load_task(world.task).splits()
        with pytest.raises(InputError, match="--resume"), Unfinished(output):
            pass
        with Unfinished(output, resume=True) as again:  # and goes on
            again.remove()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "content", [[], ["run.lock"], ["run.lock", "recipe.yaml"], ["recipe.yaml"], [".recipe.yaml.x1y2/sieve.lock"]]
)
def test_a_half_made_folder_is_free(tmp_path, world, content):
    """Of a run killed before it had any result: one may start anew, and where there is a recipe also resume."""
    output = tmp_path / "out"
    folder = tmp_path / "out.unfinished"
    for resume in (False, True):
        folder.mkdir(exist_ok=True)
        for name in content:
            (folder / name).parent.mkdir(exist_ok=True)
            try_lock(folder / name).close()  # whatever a dead process has written there
        if resume and "recipe.yaml" not in content:
            with pytest.raises(InputError, match="start one with --output"), Unfinished(output, resume):
                pass
        else:
            with Unfinished(output, resume) as unfinished:
                unfinished.remove()
            assert not folder.exists()


def test_what_sieve_did_not_make_stays(tmp_path, world):
    folder = tmp_path / "out.unfinished"
    folder.mkdir()
    (folder / "thesis.txt").write_text("chapter 1")
    with pytest.raises(InputError, match=r"'thesis.txt', which Sieve did not make"), Unfinished(tmp_path / "out"):
        pass
    assert os.listdir(folder) == ["thesis.txt"]
    (tmp_path / "other.unfinished").write_text("a file")
    with pytest.raises(InputError, match="is a file"), Unfinished(tmp_path / "other"):
        pass
    unfinished = begun(tmp_path / "mine", world)
    (tmp_path / "mine.unfinished" / "notes.txt").write_text("mine")
    unfinished.remove()
    assert os.listdir(tmp_path / "mine.unfinished") == ["notes.txt"]


@pytest.mark.parametrize("resume", [False, True])
def test_a_second_process_is_told_who_is_at_it(run, world, tmp_path, resume):  # noqa: F811
    """Whether it starts or resumes, it ends with exit code 2 and touches nothing."""
    output = tmp_path / "out"
    unfinished = begun(output, world)
    before = {path.name: path.read_bytes() for path in (tmp_path / "out.unfinished").iterdir()}
    command = ("prune", "--resume", output) if resume else arguments(world, output)
    code, _, err = run(*command)
    assert code == 2
    assert f"out is being made by process {os.getpid()} on {socket.gethostname()}" in err
    assert "load" not in err
    assert {path.name: path.read_bytes() for path in (tmp_path / "out.unfinished").iterdir()} == before
    unfinished.remove()


def test_two_resumes_at_once(run, world, tmp_path):  # noqa: F811
    """The journal survives: one of them ends with the result, the others are sent away."""
    output = tmp_path / "out"
    killed(arguments(world, output), output, 4)
    together = [process("prune", "--resume", output, "--quiet") for _ in range(3)]
    ends = [(running.wait(), running.communicate()[1]) for running in together]
    assert sorted(code for code, _ in ends) == [0, 2, 2]
    # One that starts late finds the result, or nothing to resume.
    words = ("is being made by", "no interrupted run", "already exists", "cannot read the recipe")
    assert all(any(word in err for word in words) for code, err in ends if code == 2), ends
    assert (output / "report.json").is_file()
    assert not Path(f"{output}.unfinished").exists()


@pytest.mark.parametrize("place", ["/proc/nope/out", "file/out"])
def test_an_output_that_cannot_be_made_fails_at_once(run, world, tmp_path, monkeypatch, place):  # noqa: F811
    monkeypatch.setattr("sieve.run.pipeline.load_model", lambda *given: pytest.fail("work has begun"))
    (tmp_path / "file").write_text("")
    code, _, err = run(*arguments(world, tmp_path / place))
    assert code == 4
    assert err.count("\n") == 1
    assert "cannot write" in err


@pytest.fixture
def moved(run, world, tmp_path, monkeypatch):  # noqa: F811
    """A run begun with relative paths in one folder, killed after its search, and looked at from another one."""
    here, elsewhere = tmp_path / "here", tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.copytree(Path(world.task).parent, here)
    monkeypatch.chdir(here)
    given = ("prune", "model", "--task", "legs.yaml", "--output", "out", "--tolerance", 0.9, "--rank-multiple", 4,
             "--calibration-tokens", 1000, "--search", "uniform")  # fmt: skip
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
        patched.setattr(pipeline, "calibrate", lambda *given, **more: pytest.fail("work has begun"))
        code, _, err = run("prune", "--resume", moved / "out")
    assert code == 2
    assert "the task's data has changed since this run began" in err
    assert "examples, now" in err
    assert "out.unfinished and start with --output" in err
    data.write_text("".join(rows))
    assert run("prune", "--resume", moved / "out")[0] == 0


def test_only_the_test_split_may_change(run, world, tmp_path):  # noqa: F811
    """It decides nothing: what was found stays true."""
    unfinished = begun(tmp_path / "out", world)
    task = load_task(world.task)
    data = describe_data(task.splits())
    unfinished._lock.close()
    with Unfinished(tmp_path / "out", resume=True) as again:
        again.begin(Recipe(world.model, world.task), task, data | {"test": {"examples": 3, "sha256": "x"}})
        with pytest.raises(InputError, match=r"changed .*: fitness \(32 examples, now 3\)"):
            again.begin(Recipe(world.model, world.task), task, data | {"fitness": {"examples": 3, "sha256": "x"}})
        again.remove()


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
    monkeypatch.setattr(pipeline, "evaluate", lambda *given: pytest.fail("work has begun"))
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
    for place in ("sieve.run.pipeline.evaluate", "sieve.searchers.run.applied"):
        module, _, name = place.rpartition(".")
        plain = getattr(sys.modules[module], name)
        monkeypatch.setattr(place, lambda *given, plain=plain, place=place: (asked.append(place), plain(*given))[1])
    pipeline.prune(Recipe.load(unfinished_recipe(tmp_path / "out")), tmp_path / "out", resume=True)
    assert not asked


def test_the_dense_model_is_scored_once(world, tmp_path, monkeypatch):
    """Also where a run was killed before its search had any result; of another model these are no scores."""
    recipe = Recipe(world.model, world.task, tolerance=0.5, calibration_tokens=1000, rank_multiple=4, search="uniform")
    plain, scored = pipeline.evaluate, []
    monkeypatch.setattr(pipeline, "evaluate", lambda *given: (scored.append(given), plain(*given))[1])
    with monkeypatch.context() as patched:
        patched.setattr(Unfinished, "_is_of_no_use", lambda self, error: False)  # as SIGKILL leaves it
        patched.setattr(pipeline, "calibrate", lambda *given, **more: (_ for _ in ()).throw(Killed()))
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
        patch.setattr(Unfinished, "remove", lambda self: None)
        assert run(*arguments(world, output), "--quiet")[0] == 0
    before = sorted(path.name for path in output.iterdir())
    code, _, error = run("prune", "--resume", output)
    assert code == 2
    assert "is finished, there is nothing to resume" in error
    assert not Path(f"{output}.unfinished").exists()
    assert sorted(path.name for path in output.iterdir()) == before
