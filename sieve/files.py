"""Writing files so that a crash, a full disk or Ctrl-C never leaves a broken one behind."""

import errno
import fcntl
import json
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from sieve.errors import InputError, StorageError


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
    """Yield a temporary path beside `path`; on success it is synced and renamed to `path`, else removed."""
    path = Path(path)
    with _storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            temporary.chmod(0o644)
            _sync(temporary)
            temporary.replace(path)
            _sync(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Like `atomic_file` for a whole folder; `path` must not exist, or be an empty folder."""
    path = require_new(path)
    with _storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
        try:
            yield temporary
            temporary.chmod(0o755)
            for file in temporary.rglob("*"):
                if file.is_file():
                    file.chmod(0o644)  # safetensors makes its files unreadable for others, such as a server
                _sync(file)
            if path.is_dir():
                path.rmdir()
            temporary.replace(path)
            _sync(path.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


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
    with _storage_errors(path):
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
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        return file


def lock_holder(path: str | Path) -> str:
    """Who locked the file last, for messages: "process 123 on host"."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip() or "another process"
    except OSError:
        return "another process"


@contextmanager
def _storage_errors(path: Path) -> Iterator[None]:
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
