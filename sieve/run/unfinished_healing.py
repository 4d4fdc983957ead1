"""What an interrupted `sieve heal` leaves: a folder beside its output, from which the same command continues."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from sieve.errors import InputError
from sieve.healing.checkpoint import Checkpoint
from sieve.utils import progress
from sieve.utils.files import lock_holder, remove_leftovers, storage_errors, try_lock

if TYPE_CHECKING:
    from sieve.searchers.engine.journal import Journal

_LOCK, _SCORES = "heal.lock", "scores.txt"


class UnfinishedHealing:
    """A folder `OUTPUT.healing` for this process alone; it is removed when the healing is done."""

    def __init__(self, folder: Path):
        self.folder = folder

    @contextmanager
    def scores(self, key: str) -> Iterator[Journal]:
        """The journal of scores; InputError if the folder belongs to another healing than `key`."""
        from sieve.searchers.engine.journal import Journal

        try:
            with Journal(self.folder / _SCORES, {"healing": key}) as journal:
                yield journal
        except InputError as error:
            if "journal" not in str(error):
                raise
            raise InputError(
                f"{self.folder} holds an interrupted healing of something else: remove it, or choose another --output"
            ) from error

    def checkpoint(self, name: str, key: str) -> Checkpoint:
        """The checkpoint of one healing; a run may have several."""
        folder = self.folder / name
        with storage_errors(folder):
            folder.mkdir(exist_ok=True)
        return Checkpoint(folder, key)


@contextmanager
def unfinished_healing(output: Path) -> Iterator[UnfinishedHealing]:
    """The folder of a healing that makes `output`, with the work of an earlier process if there is some.

    Raises: InputError if another process uses it, or something else has this name.
    """
    # Never use a folder that Sieve did not make: it would be removed at the end.
    output = output.resolve()
    folder = output.with_name(f"{output.name}.healing")
    if folder.exists() and not (folder / _LOCK).is_file():
        raise InputError(f"{folder}, where an interrupted healing is kept, is in the way: choose another --output")
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    # Take the lock, so that only one process works in the folder.
    lock = try_lock(folder / _LOCK)
    if lock is None:
        raise InputError(f"{output} is being made by {lock_holder(folder / _LOCK)}: wait for it, or choose another")
    try:
        remove_leftovers(folder)
        yield UnfinishedHealing(folder)
        kept = False
    except InputError:
        # Keep the folder of another healing: the error is about that one.
        kept = (folder / _SCORES).is_file()
        raise
    except BaseException:
        # Keep what a later call can use.
        kept = any(folder.rglob("*.safetensors")) or (folder / _SCORES).is_file()
        if kept:
            progress.say("  finished work is kept: the same command continues from it")
        raise
    finally:
        if not kept:
            shutil.rmtree(folder, ignore_errors=True)
        lock.close()
