"""Finished evaluations on disk: nothing is evaluated twice, whatever happens to the process.

A text file. Every line is `checksum JSON`, the checksum being the first 16 hex digits of the SHA-256 of the line number
and the JSON, so that a lost or repeated line shows too. The first line says what the evaluations are of; each further
one is a finished evaluation, synced before the search goes on. A crash or a full disk can tear the last line only: it
is cut off.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from sieve.errors import InputError, StorageError
from sieve.utils.files import take_lock
from sieve.utils.identity import differences

VERSION = 3


class Journal:
    """Key → record, in the order of their writing; a context manager that holds the file open.

    Keys are texts, records JSON objects. What is added is on the disk when `add` returns.

    Args:
        path: file to continue, or to begin.
        identity: what a record depends on (model, data, recipe): name → value. A file of another identity is refused.
            None: go on with whatever the file is of, which the caller knows to be right.

    Raises: InputError naming what differs, or where another search is writing to the file; StorageError for a line
        that is not what was written, naming it, or when the disk is full: what was complete before stays.

    Example:
        >>> with Journal("journal.txt", {"model": fingerprint}) as journal:
        ...     if key not in journal.records:
        ...         journal.add(key, {"score": 0.7})
    """

    def __init__(self, path: str | Path, identity: Mapping[str, Any] | None):
        self.path = Path(path)
        header = {"sieve": "journal", "version": VERSION, "identity": None if identity is None else dict(identity)}
        self._header = json.loads(json.dumps(header))  # tuples and the like as they will be read back
        self.records: dict[str, dict[str, Any]] = {}
        self._lines = 0

    def __enter__(self) -> "Journal":
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self.path, "ab", buffering=0)
        except OSError as error:
            raise _storage(self.path, error) from error
        try:
            self._begin()
        except BaseException:
            self._file.close()
            raise
        return self

    def _begin(self) -> None:
        try:
            if not take_lock(self._file):
                raise InputError(f"{self.path} is the journal of a search that is running: wait for it to end")
            content = self.path.read_bytes()
            whole = self._read(content)
            if whole < len(content):
                self._file.truncate(whole)
        except StorageError:
            raise
        except OSError as error:
            raise _storage(self.path, error) from error
        if not self._lines:
            self._write(self._header)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def add(self, key: str, record: Mapping[str, Any]) -> None:
        """Write one finished evaluation and have it on the disk."""
        self._write({"key": key, **record})
        self.records[key] = dict(record)

    def _read(self, content: bytes) -> int:
        """Take in all complete lines; returns the length of the file that they make up."""
        *lines, torn = content.split(b"\n")
        length = 0
        for number, line in enumerate(lines, 1):
            value = _parse(line, number)
            if value is None:
                if number == len(lines) > 1 and not torn:
                    break
                raise StorageError(
                    f"{self.path}: line {number} is damaged, and more than a crash can do: the journal cannot be "
                    "trusted; restore it, or start again without --resume"
                )
            if number == 1:
                self._check(value)
            else:
                self.records[value.pop("key")] = value
            self._lines = number
            length += len(line) + 1
        if not lines and not self._line(self._header).startswith(torn):
            raise InputError(f"{self.path} is no journal of this search: choose another place")
        return length

    def _check(self, header: dict[str, Any]) -> None:
        if header.get("sieve") != "journal" or header.get("version") != VERSION:
            raise InputError(f"{self.path} is no journal of this version of Sieve: choose another place")
        found, wanted = header["identity"], self._header["identity"]
        if wanted is None:
            return
        changed = differences(found, wanted)
        if changed:
            raise InputError(
                f"{self.path} is the journal of another search: changed since are {', '.join(changed)}; "
                "restore them, or start again without --resume"
            )

    def _write(self, value: dict[str, Any]) -> None:
        data = self._line(value)
        try:
            end = self._file.seek(0, os.SEEK_END)
            if self._file.write(data) != len(data):  # a disk that fills up takes part of it
                self._file.truncate(end)
                raise OSError(28, "No space left on device")
            os.fsync(self._file.fileno())
        except OSError as error:
            raise _storage(self.path, error) from error
        self._lines += 1

    def _line(self, value: dict[str, Any]) -> bytes:
        text = json.dumps(value, separators=(",", ":"), allow_nan=False)
        return f"{_checksum(self._lines + 1, text)} {text}\n".encode()


def _parse(line: bytes, number: int) -> dict[str, Any] | None:
    """The object of a line, or None if it is not what was written there."""
    checksum, _, text = line.decode(errors="replace").partition(" ")
    if checksum != _checksum(number, text):
        return None
    return json.loads(text)


def _checksum(number: int, text: str) -> str:
    return hashlib.sha256(f"{number}\n{text}".encode()).hexdigest()[:16]


def _storage(path: Path, error: OSError) -> StorageError:
    return StorageError(
        f"cannot keep the journal {path}: {error.strerror or error}; what is finished is kept: free some space and "
        "continue with --resume"
    )
