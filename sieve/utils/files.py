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

_LOCK = "sieve.lock"  # in a folder that is being written
_HOLDER = "process "  # what every lock of ours begins with


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

    None, with a note, where there is none: it cannot be made, belongs to another user or is open to everyone.
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

    In a folder with the sticky bit, such as /tmp, everyone can make files, but not put them in the place of others'.
    """
    status = Path(path).stat()
    if status.st_uid not in (0, os.getuid()):
        return f"{path} belongs to another user"
    sticky = stat.S_ISDIR(status.st_mode) and status.st_mode & stat.S_ISVTX
    return f"everyone can write to {path}" if status.st_mode & stat.S_IWOTH and not sticky else None


@cache
def process_folder() -> Path:
    """A folder for this process alone, for what a cache would hold; it goes when the process ends.

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

    The file gets the mode that the user's umask gives to new files. What a killed process leaves behind is removed by
    the next one that writes beside `path`, see `remove_leftovers`.

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
                file.chmod(mode)  # safetensors makes its files unreadable for others, such as a server
            _sync(file)
        _sync(temporary)
        if final.is_dir():
            final.rmdir()
        temporary.replace(final)


@contextmanager
def _making(path: Path) -> Iterator[tuple[Path, Path, int]]:
    """A temporary path for what becomes `path`, `path` without links, and the mode of new files.

    The temporary path lies in a hidden folder beside `path`, with a lock that says that this process is alive.
    """
    with storage_errors(path):
        final = Path(os.path.realpath(path))
        final.parent.mkdir(parents=True, exist_ok=True)
        with locked_folder(final.parent, final.name) as folder:
            # The lock was made as users make files: its mode is what their umask leaves of 0666.
            yield folder / final.name, final, stat.S_IMODE((folder / _LOCK).stat().st_mode)
            _sync(final.parent)


@contextmanager
def locked_folder(place: Path, name: str) -> Iterator[Path]:
    """A new hidden folder in `place` for this process alone, named after `name`; it goes when the block ends."""
    remove_leftovers(place)
    folder = Path(tempfile.mkdtemp(dir=place, prefix=f".{name[:50]}."))
    try:
        # No other process knows of the folder yet, so that this lock cannot be taken.
        with try_lock(folder / _LOCK) or nullcontext():
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def remove_leftovers(place: str | Path) -> None:
    """Remove what killed processes have left half-written in the folder `place`.

    Only hidden folders with a lock of ours go, and never one that a live process may still write to.
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
                # Here two may hold a lock: this file system has none, and it cannot be told which process is alive.
                second.close()
                continue
            shutil.rmtree(path.parent, ignore_errors=True)


def require_writable(path: str | Path) -> None:
    """StorageError now, not after long work, where `atomic_file` could not write to this path."""
    with _making(Path(path)):
        pass


def write_text(path: str | Path, text: str) -> None:
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def require_space(path: str | Path, needed: int) -> None:
    """StorageError unless the disk that `path` is on, or will be on, has so many bytes left."""
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
            # Its last holder may have removed the file between the two calls: then this is a lock on nothing.
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                    break
            file.close()
        # In this order it is never found empty once it has had a holder.
        file.write(f"{_HOLDER}{os.getpid()} on {socket.gethostname()}\n")
        file.truncate()
        file.flush()
        return file


def take_lock(file: IO) -> bool:
    """Lock an open file until it is closed; False where another process holds the lock. See `try_lock`."""
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
    """The operating system's refusals, as one line that names the file."""
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        raise StorageError(
            f"cannot write {path}: {error.strerror or error}; free some space or choose another place"
        ) from error
    except Exception as error:  # safetensors reports a full disk by an exception of its own
        if type(error).__module__.startswith("safetensors"):
            raise StorageError(f"cannot write {path}: {error}; free some space or choose another place") from error
        raise


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
