"""Data files → rows: JSON lines, CSV, Parquet."""

import csv
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sieve.errors import InputError
from sieve.tasks.row import Row, flat
from sieve.utils.messages import one_line, shorten

SUFFIXES = (".jsonl", ".csv", ".parquet")
# Characters that a CSV field may have; the library's own limit is 131,072.
_LARGEST_FIELD = 2**31 - 1


Record = tuple[dict[str, Any], str]
"""A row as it is in its file, and its place there, for messages."""


def read_rows(path: Path) -> list[Row]:
    """All rows of a file; InputError in one line that names the file and, if one row is at fault, this row."""
    return [as_row(*record) for record in records(path)]


def as_row(values: dict[str, Any], where: str) -> Row:
    """A record as tasks read it: nested fields get names with dots; columns without a name are dropped."""
    return Row(flat({name: value for name, value in values.items() if name}), where)


def records(path: Path) -> Iterator[Record]:
    """The rows of a file one after the other, so that memory does not grow with it; errors as of `read_rows`."""
    read = {".jsonl": _jsonl, ".csv": _csv, ".parquet": _parquet}.get(path.suffix.lower())
    if read is None:
        raise InputError(f"cannot read {path}: data must be one of {', '.join(SUFFIXES)}")
    try:
        yield from read(path)
    except UnicodeDecodeError:
        raise InputError(f"cannot read {path}: it is not UTF-8: save it in that encoding") from None
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or one_line(error)}") from None


def _jsonl(path: Path) -> Iterator[Record]:
    with path.open(encoding="utf-8") as file:
        yield from json_lines(file, path.name)


def json_lines(lines: Iterable[str], name: str) -> Iterator[Record]:
    """The JSON objects of lines; blank lines are left out."""
    for number, line in enumerate(lines, 1):
        # Remove a byte order mark: Windows writes one at the start of files.
        line = line.lstrip("\ufeff")
        if line.strip():
            where = f"{name} line {number}"
            yield json_object(line, where), where


def json_object(text: str, where: str) -> dict[str, Any]:
    """InputError, beginning with `where`, unless the text is a JSON object with distinct keys."""
    try:
        values = json.loads(text, object_pairs_hook=_once_each)
    except ValueError as error:
        raise InputError(f"{where} is not JSON: {one_line(error)}") from None
    except RecursionError:
        raise InputError(f"{where} is not JSON of ordinary depth: its brackets are nested too deeply") from None
    if not isinstance(values, dict):
        raise InputError(f"{where} must be a JSON object with named fields, got {shorten(values)}")
    return values


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError(f"the key {shorten(_twice([name for name, _ in pairs]))} stands twice")
    return values


def _csv(path: Path) -> Iterator[Record]:
    """Skip blank lines and columns without a name, except an unnamed first column: it is a table's index."""
    with path.open(encoding="utf-8-sig", newline="") as file, _long_fields():
        # Strict: else a quotation mark that is never closed takes the rest of the file into one value.
        lines = _csv_lines(csv.reader(file, strict=True), path.name)
        names = [name.strip() for name in next(lines, (0, []))[1]]
        _require_distinct([name for name in names if name], path.name)
        for number, values in lines:
            where = f"{path.name} row {number}"
            yield _csv_row(names, values, where), where


def _csv_lines(reader: Iterator[list[str]], name: str) -> Iterator[tuple[int, list[str]]]:
    """The header as number 0, then the rows."""
    number = 0
    try:
        for values in reader:
            if values:
                yield number, values
                number += 1
    except csv.Error as error:
        where = f"{name} row {number}" if number else f"the header of {name}"
        raise InputError(
            f"{where} is not CSV: {one_line(error)}: a quotation mark inside a quoted value is written twice"
        ) from None


def _csv_row(names: Sequence[str], values: Sequence[str], where: str) -> dict[str, str]:
    if any(values[len(names) :]):
        raise InputError(f"{where} has more values than the header: quote the ones that hold a comma")
    # A row that ends early lacks its last fields.
    pairs = enumerate(zip(names, values, strict=False))
    return {name: value for place, (name, value) in pairs if name or place == 0}


@contextmanager
def _long_fields() -> Iterator[None]:
    limit = csv.field_size_limit(_LARGEST_FIELD)
    try:
        yield
    finally:
        csv.field_size_limit(limit)


def _parquet(path: Path) -> Iterator[Record]:
    # Imported here because it is slow to import, and only this function needs it.
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
        _require_distinct(file.schema_arrow.names, path.name)
        rows = (row for batch in file.iter_batches() for row in batch.to_pylist())
        for number, row in enumerate(rows, 1):
            yield row, f"{path.name} row {number}"
    except InputError:
        raise
    except Exception as error:
        # The library raises many kinds of errors: damage, codecs, times that Python cannot represent.
        raise InputError(f"cannot read {path}: {one_line(error)}") from None


def _require_distinct(names: Sequence[str], where: str) -> None:
    twice = _twice(names)
    if twice is not None:
        raise InputError(f"{where} has two columns named {shorten(twice)}: rename one")


def _twice(names: Sequence[str]) -> str | None:
    return next((name for name, count in Counter(names).items() if count > 1), None)
