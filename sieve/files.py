"""Writing files so that a crash, a full disk or Ctrl-C never leaves a broken one behind."""

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
from pathlib import Path
from typing import IO, Any

from sieve.errors import InputError, StorageError

_LOCK = "sieve.lock"  # in a folder that is being written
_HOLDER = "process "  # what every lock of ours begins with


def cache_dir() -> Path:
    """Where converted models and calibration statistics live: $SIEVE_CACHE, else the user's cache folder."""
    if "SIEVE_CACHE" in os.environ:
        return Path(os.environ["SIEVE_CACHE"]).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "sieve"


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
        with _locked_folder(final.parent, final.name) as folder:
            # The lock was made as users make files: its mode is what their umask leaves of 0666.
            yield folder / final.name, final, stat.S_IMODE((folder / _LOCK).stat().st_mode)
            _sync(final.parent)


@contextmanager
def _locked_folder(place: Path, name: str) -> Iterator[Path]:
    """A new hidden folder in `place` for this process alone; it goes when the block ends."""
    remove_leftovers(place)
    folder = Path(tempfile.mkdtemp(dir=place, prefix=f".{name[:50]}."))
    try:
        # Nobody else knows of the folder yet, so that this lock cannot be taken.
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
                # Here two may hold a lock: this file system knows none, and nobody can tell who is alive.
                second.close()
                continue
            shutil.rmtree(path.parent, ignore_errors=True)


def write_text(path: str | Path, text: str) -> None:
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


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
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.close()
                return None
            except OSError as error:
                if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP):
                    file.close()
                    raise
            # Its last holder may have removed the file between the two calls: then this is a lock on nothing.
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                    break
            file.close()
        file.truncate()
        file.write(f"{_HOLDER}{os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        return file


def lock_holder(path: str | Path) -> str:
    """Who locked the file last, for messages: "process 123 on host"."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip() or "another process"
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
