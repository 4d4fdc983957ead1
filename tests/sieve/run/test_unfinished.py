"""What a run leaves in its folder, to be resumed or begun anew, and whose that folder is."""

import os
import socket

import pytest

from sieve.errors import DeviceError, InputError, NumericsError, StorageError, ToleranceError, WorkerError
from sieve.run.recipe import Recipe
from sieve.run.resume import ResumableRun, unfinished_recipe
from sieve.tasks import load_task
from sieve.tasks.stored import describe_data
from sieve.utils.files import try_lock
from tests.sieve.run.test_resume import arguments
from tests.sieve.test_cli import own_cache, run  # noqa: F401 - fixtures


def begun(output, world, lines=2, resume=False):
    """An unfinished run whose journal has so many lines, held by this process."""
    unfinished = ResumableRun(output, resume).__enter__()
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
        (DeviceError("failed"), 2, False, False, True),
        (DeviceError("failed"), 1, False, False, False),
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
        with pytest.raises(InputError, match="--resume"), ResumableRun(output):
            pass
        with ResumableRun(output, resume=True) as again:  # and goes on
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
            with pytest.raises(InputError, match="start one with --output"), ResumableRun(output, resume):
                pass
        else:
            with ResumableRun(output, resume) as unfinished:
                unfinished.remove()
            assert not folder.exists()


def test_what_sieve_did_not_make_stays(tmp_path, world):
    folder = tmp_path / "out.unfinished"
    folder.mkdir()
    (folder / "thesis.txt").write_text("chapter 1")
    with pytest.raises(InputError, match=r"'thesis.txt', which Sieve did not make"), ResumableRun(tmp_path / "out"):
        pass
    assert os.listdir(folder) == ["thesis.txt"]
    (tmp_path / "other.unfinished").write_text("a file")
    with pytest.raises(InputError, match="is a file"), ResumableRun(tmp_path / "other"):
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


def test_only_the_test_split_may_change(run, world, tmp_path):  # noqa: F811
    """It decides nothing: what was found stays true."""
    unfinished = begun(tmp_path / "out", world)
    task = load_task(world.task)
    data = describe_data(task.splits())
    unfinished._lock.close()
    with ResumableRun(tmp_path / "out", resume=True) as again:
        again.begin(Recipe(world.model, world.task), task, data | {"test": {"examples": 3, "sha256": "x"}})
        with pytest.raises(InputError, match=r"changed .*: fitness \(32 examples, now 3\)"):
            again.begin(Recipe(world.model, world.task), task, data | {"fitness": {"examples": 3, "sha256": "x"}})
        again.remove()
