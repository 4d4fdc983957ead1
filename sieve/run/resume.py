"""What an interrupted run leaves behind, so that it can be resumed: its recipe, its task and its journal.

They lie in `DIR.unfinished` beside the folder DIR that is being made, together with a lock that the run's process
holds. Nothing else need be kept: all choices follow from the recipe's seed and the scores. So a run that starts again
with the journal reaches its old place without running the model, and then comes to the same result.
"""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sieve.errors import DeviceError, InputError, SieveError, StorageError, ToleranceError, WorkerError
from sieve.run.recipe import Recipe
from sieve.tasks import Task
from sieve.tasks.stored import TASK_FILE, Data, changed_splits
from sieve.utils import progress
from sieve.utils.files import (
    lock_holder,
    remove_leftovers,
    require_new,
    storage_errors,
    try_lock,
    write_json,
    write_yaml,
)
from sieve.utils.safe_yaml import read_yaml

if TYPE_CHECKING:
    from sieve.searchers.engine.journal import Journal

_LOCK, _RECIPE, _DATA, _DENSE, _JOURNAL = "run.lock", "recipe.yaml", "data.json", "dense.txt", "journal.txt"
# Folder of the stages that keep more than a journal.
_STAGES = "stages"
# The lock is removed last: until then no other process may begin.
_FILES = (_RECIPE, TASK_FILE, _DATA, _DENSE, _JOURNAL, _STAGES, _LOCK)


class ResumableRun:
    """The folder of one running run. A context manager: inside it the folder belongs to this process.

    After an error the folder is removed if it holds nothing to resume, or if resuming would fail again.

    Args:
        output: the folder that is to be made.
        resume: continue what an earlier process left there.

    Raises: InputError if another process uses it, if there is nothing to resume, or something that would be
        overwritten; StorageError if the folder cannot be written.
    """

    def __init__(self, output: Path, resume: bool = False):
        self.output, self._folder, self._resume = output, _folder(output), resume
        self._searched, self.journal, self._open = False, None, ExitStack()

    def __enter__(self) -> "ResumableRun":
        # Take the lock first: everything below assumes that no other process changes the folder.
        if self._resume:
            unfinished_recipe(self.output)
        else:
            self._make()
        self._lock = try_lock(self._folder / _LOCK)
        if self._lock is None:
            raise InputError(
                f"{self.output} is being made by {lock_holder(self._folder / _LOCK)}: wait for it, or choose another "
                "--output"
            )
        try:
            # The earlier process may have been killed after its last step: then only clean up.
            if self._is_done():
                self.remove()
                raise InputError(
                    f"{self.output} is finished, there is nothing to resume: look at it with sieve info {self.output}"
                )
            # Check only now, when no other process can be making it.
            require_new(self.output)
            if not self._resume:
                self._clear()
        except BaseException:
            self._lock.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self._open.close()
        if error is not None and self._is_of_no_use(error):
            self.remove()
        elif error is not None:
            progress.say(f"  what is finished is kept: go on with --resume {self.output}")
        self._lock.close()

    def begin(self, recipe: Recipe, task: Task, data: Data) -> None:
        """Write down recipe, task and data, once the run is known to be possible; a resumed run needs the same data.

        The test split decides nothing: if only that has changed, the run goes on with the new one.
        """
        if self._resume:
            self._check(data)
        else:
            write_json(self._folder / _RECIPE, recipe.beside_task())
        write_json(self._folder / _DATA, data)
        write_yaml(self._folder / TASK_FILE, task.to_dict())

    @contextmanager
    def dense(self, identity: Mapping[str, Any]) -> "Iterator[Journal]":
        """The journal of the dense model's scores; InputError if it was made for another `identity`."""
        from sieve.searchers.engine.journal import Journal

        with Journal(self._folder / _DENSE, identity) as journal:
            yield journal

    @contextmanager
    def search(self) -> Iterator[Path]:
        """The journal to search with; after the search, `journal` is open for later stages."""
        yield self._folder / _JOURNAL
        self._searched = True
        # Imported late: its package imports torch, and errors about resuming should come at once.
        from sieve.searchers.engine.journal import Journal

        self.journal = self._open.enter_context(Journal(self._folder / _JOURNAL, None))

    def stage(self, name: str) -> Path:
        """A folder where a stage keeps work that need not be done again."""
        folder = self._folder / _STAGES / name
        with storage_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        return folder

    def remove(self) -> None:
        """Remove the run's files, and the folder if nothing else is in it."""
        remove_leftovers(self._folder)
        self._unlink(_FILES)
        self._lock.close()
        with suppress(OSError):
            self._folder.rmdir()

    def _is_done(self) -> bool:
        """Whether the run was killed between its last two steps: the output exists and has this run's recipe."""
        done, begun = self.output / _RECIPE, self._folder / _RECIPE
        if not (self._resume and done.is_file() and begun.is_file()):
            return False
        return read_yaml(done, "the recipe") == read_yaml(begun, "the recipe")

    def _make(self) -> None:
        if self._folder.exists() and not self._folder.is_dir():
            raise InputError(
                f"{self._folder} is a file, and interrupted runs are kept in a folder there: choose another --output"
            )
        with storage_errors(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
        foreign = sorted(
            path.name for path in self._folder.iterdir() if not path.name.removeprefix(".").startswith(_FILES)
        )
        if foreign:
            raise InputError(
                f"{self._folder} is for interrupted runs, but it holds {foreign[0]!r}, which Sieve did not make: "
                "choose another --output"
            )

    def _clear(self) -> None:
        """Start with an empty folder; InputError if that would lose finished work."""
        if self._has_results():
            raise InputError(
                f"{self._folder} holds an interrupted run: go on with --resume {self.output}, or remove it first"
            )
        self._unlink(_FILES[:-1])

    def _unlink(self, names: Sequence[str]) -> None:
        for name in names:
            if name == _STAGES:
                shutil.rmtree(self._folder / name, ignore_errors=True)
            else:
                (self._folder / name).unlink(missing_ok=True)

    def _check(self, data: Data) -> None:
        path = self._folder / _DATA
        if not path.is_file():
            # The run was killed before the file was written, or an earlier version made it; the journal has its own
            # check.
            return
        try:
            changed = changed_splits(json.loads(path.read_text(encoding="utf-8")), data)
        except (ValueError, LookupError, TypeError) as error:
            raise StorageError(f"{path} is damaged: remove {self._folder} to start again") from error
        if any(not split.startswith("test") for split in changed):
            raise InputError(
                f"the task's data has changed since this run began: {', '.join(changed)}. Restore it to resume, or "
                f"remove {self._folder} and start with --output {self.output}"
            )
        for split in changed:
            progress.note(f"the data has changed since this run began: {split}")

    def _has_results(self) -> bool:
        """Whether the journal holds a line besides its header; without one, only a recipe could be lost."""
        journal = self._folder / _JOURNAL
        return journal.is_file() and journal.read_bytes().count(b"\n") > 1

    def _is_of_no_use(self, error: BaseException) -> bool:
        if not self._has_results():
            return not self._resume
        if self._searched:
            return False
        if isinstance(error, ToleranceError):
            # Resuming would end in the same error.
            return True
        passing = isinstance(error, StorageError | WorkerError | DeviceError)
        return not self._resume and isinstance(error, SieveError) and not passing


def unfinished_recipe(output: str | Path) -> Path:
    """The recipe of the run that was interrupted on its way to `output`; InputError if there is none."""
    recipe = _folder(Path(output)) / _RECIPE
    if not recipe.is_file():
        raise InputError(f"{output} has no interrupted run: start one with --output {output}")
    return recipe


def _folder(output: Path) -> Path:
    output = output.resolve()
    if not output.name:
        raise InputError(f"{output} cannot be made: name a folder in it as --output")
    return output.with_name(f"{output.name}.unfinished")
