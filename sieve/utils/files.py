"""Writing files so that a crash, a full disk or Ctrl-C never leaves a broken one behind."""

import atexit
import errno
import fcntl
import json
import os
import shutil
import socket
import stat
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from functools import cache
from pathlib import Path
from typing import IO, Any

import yaml

from sieve.errors import InputError, StorageError
from sieve.utils import progress

# Name of the lock file in a folder that is being written.
_LOCK = "sieve.lock"
# Every lock file of Sieve begins with this text.
_HOLDER = "process "


def cache_dir() -> Path:
    """Where converted models and calibration statistics live: $SIEVE_CACHE, else the user's cache folder.

    Raises: StorageError where the user has no home.
    """
    place = os.environ.get("SIEVE_CACHE")
    try:
        if place:
            return Path(place).expanduser()
        return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "sieve"
    except RuntimeError as error:
        raise StorageError("there is no home folder for a cache: name a folder in SIEVE_CACHE") from error


def cache_folder(name: str) -> Path | None:
    """The user's own cache folder of this name; made, and closed to others, if it is missing.

    Returns None, with a note, if the folder cannot be made, belongs to another user or is open to everyone.
    """
    try:
        folder = cache_dir() / name
        with storage_errors(folder):
            folder.parent.parent.mkdir(parents=True, exist_ok=True)
            for one in (folder.parent, folder):
                one.mkdir(mode=0o700, exist_ok=True)
                if (reason := why_untrusted(one)) is not None:
                    progress.note_once(f"the cache is not used: {reason}")
                    return None
            remove_leftovers(folder)
            return folder
    except StorageError as error:
        progress.note_once(f"going on without a cache: {error}")
        return None


def in_cache(path: str | Path) -> bool:
    """Whether a path lies in the user's cache."""
    with suppress(StorageError):
        return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(cache_dir()))
    return False


def why_untrusted(path: str | Path) -> str | None:
    """Why others may have put something at this path; None where only this user and root could.

    In a folder with the sticky bit, such as /tmp, everyone can make files, but not replace other users' files.
    """
    status = Path(path).stat()
    if status.st_uid not in (0, os.getuid()):
        return f"{path} belongs to another user"
    sticky = stat.S_ISDIR(status.st_mode) and status.st_mode & stat.S_ISVTX
    return f"everyone can write to {path}" if status.st_mode & stat.S_IWOTH and not sticky else None


@cache
def process_folder() -> Path:
    """A folder for this process alone that stands in for a cache; it is removed when the process ends.

    Raises: StorageError where no temporary folder can be made.
    """
    stack = ExitStack()
    with storage_errors(Path("a temporary folder")):
        folder = stack.enter_context(locked_folder(Path(tempfile.gettempdir()), "sieve"))
    atexit.register(stack.close)
    return folder


def require_new(path: str | Path) -> Path:
    """The path, if nothing is there yet (an empty folder counts as nothing)."""
    path = Path(path)
    if path.is_dir() and not any(path.iterdir()):
        return path
    if path.exists():
        raise InputError(f"{path} already exists: choose another --output or remove it first")
    return path


@contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path; on success its file is synced and renamed to `path`, else removed.

    The file gets the mode that the user's umask gives to new files. If a process is killed, the next one that writes
    beside `path` removes what it left, see `remove_leftovers`.

    Raises: StorageError where the file cannot be written.
    """
    with _making(Path(path)) as (temporary, final, mode):
        yield temporary
        temporary.chmod(mode)
        _sync(temporary)
        temporary.replace(final)


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Like `atomic_file` for a whole folder; `path` must not exist, or be an empty folder."""
    with _making(require_new(path)) as (temporary, final, mode):
        temporary.mkdir()
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                # safetensors makes files that other users, such as a server, cannot read.
                file.chmod(mode)
            _sync(file)
        _sync(temporary)
        if final.is_dir():
            final.rmdir()
        temporary.replace(final)


@contextmanager
def _making(path: Path) -> Iterator[tuple[Path, Path, int]]:
    """Yield a temporary path that will be renamed, the final path without links, and the mode of new files.

    The temporary path lies in a hidden folder beside `path`, with a lock that says that this process is alive.
    """
    with storage_errors(path):
        final = Path(os.path.realpath(path))
        final.parent.mkdir(parents=True, exist_ok=True)
        with locked_folder(final.parent, final.name) as folder:
            # The lock was made with default permissions, so its mode shows the user's umask.
            yield folder / final.name, final, stat.S_IMODE((folder / _LOCK).stat().st_mode)
            _sync(final.parent)


@contextmanager
def locked_folder(place: Path, name: str) -> Iterator[Path]:
    """A new hidden folder in `place` for this process alone, named after `name`; it is removed when the block ends."""
    remove_leftovers(place)
    folder = Path(tempfile.mkdtemp(dir=place, prefix=f".{name[:50]}."))
    try:
        # No other process knows the folder yet, so none can hold this lock.
        with try_lock(folder / _LOCK) or nullcontext():
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def remove_leftovers(place: str | Path) -> None:
    """Remove the half-written files of killed processes in the folder `place`.

    Only hidden folders with one of our locks are removed, and never one that a live process may still write to.
    """
    for path in Path(place).glob(f".*/{_LOCK}"):
        if path.parent.is_symlink() or not lock_holder(path).startswith(_HOLDER):
            continue
        # Another user's leftovers stay.
        with suppress(StorageError), ExitStack() as held:
            if (lock := try_lock(path)) is None:
                continue
            held.enter_context(lock)
            if (second := try_lock(path)) is not None:
                # This file system has no locks, so it is unknown whether the folder's process is alive: keep it.
                second.close()
                continue
            shutil.rmtree(path.parent, ignore_errors=True)


def require_writable(path: str | Path) -> None:
    """Check before long work that `atomic_file` could write to this path; StorageError if not."""
    with _making(Path(path)):
        pass


def write_text(path: str | Path, text: str) -> None:
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def require_space(path: str | Path, needed: int) -> None:
    """StorageError unless the disk of `path` has so many bytes left; `path` need not exist."""
    place = Path(os.path.realpath(path))
    while not place.exists():
        place = place.parent
    with storage_errors(Path(path)):
        free = shutil.disk_usage(place).free
    if free < needed:
        raise StorageError(
            f"{path} may need {needed / 2**30:.1f} GiB and its disk has {free / 2**30:.1f} GiB left: free some space "
            "or choose another place"
        )


def write_yaml(path: str | Path, value: Any) -> None:
    write_text(path, yaml.safe_dump(value, sort_keys=False, allow_unicode=True))


def write_json(path: str | Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def try_lock(path: str | Path) -> IO[str] | None:
    """Lock the file `path` (made if it is missing) for this process; None where another holds the lock.

    The lock is the operating system's (flock): it ends when the returned file is closed or its process dies, however
    that happens. Two locks on one file exclude each other within a process, too. The file names its holder, see
    `lock_holder`. On a file system without locks everyone gets one.

    Raises: StorageError where the file cannot be made.

    Example:
        >>> if (lock := try_lock(folder / "lock")) is None:
        ...     raise InputError(f"{folder} is in use by {lock_holder(folder / 'lock')}")
    """
    path = Path(path)
    with storage_errors(path):
        while True:
            file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666), "r+", encoding="utf-8")
            if not take_lock(file):
                file.close()
                return None
            # The last holder may have removed the file between the two calls; then this lock is worthless: try again.
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                    break
            file.close()
        # Write first, then shorten: other processes never find the file empty.
        file.write(f"{_HOLDER}{os.getpid()} on {socket.gethostname()}\n")
        file.truncate()
        file.flush()
        return file


def take_lock(file: IO) -> bool:
    """Lock an open file until it is closed; False if another process holds the lock. See `try_lock`."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP):
            raise
    return True


def lock_holder(path: str | Path) -> str:
    """Who locked the file last, for messages: "process 123 on host"."""
    try:
        lines = Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
        return lines[0].strip() if lines else "another process"
    except OSError:
        return "another process"


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn errors of the operating system into a StorageError of one line that names the file."""
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        raise StorageError(
            f"cannot write {path}: {error.strerror or error}; free some space or choose another place"
        ) from error
    except Exception as error:
        # safetensors reports a full disk by its own kind of exception.
        if type(error).__module__.startswith("safetensors"):
            raise StorageError(f"cannot write {path}: {error}; free some space or choose another place") from error
        raise


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
