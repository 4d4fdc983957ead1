"""Reading a task's data: files, folders of split files, `datasets`, installed packages, built-in lists.

A source gives *pools*: name → rows. One file is one pool, named ""; a folder of split files has one per split.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from sieve.errors import InputError
from sieve.tasks import geography, lm_eval
from sieve.tasks.formats import SUFFIXES, read_rows
from sieve.tasks.packages import check_package, package_path, require_inside
from sieve.tasks.row import Row, numbered
from sieve.utils.hub import hub_answers
from sieve.utils.messages import listed, one_line, shorten

BUILTIN = {
    "capitals": geography.capitals,
    "countries": geography.countries,
    "geography": geography.geography,
    "geography_2": geography.geography_2,
    "us_cities": geography.us_cities,
}
# The key that tells which kind of source it is → all keys that such a source may have.
_KINDS = {
    "dataset": ("dataset", "config", "split"),
    "package": ("package", "path"),
    "builtin": ("builtin",),
    "lm_eval": ("lm_eval", "data"),
}


def check_source(data: Any, where: str) -> None:
    """InputError if `data:` has no known form; the data itself is not read."""
    forms = "a file, a folder, {dataset: …}, {package: …, path: …} or a list of rows"
    # Whether a file or folder exists is checked later, when it is read.
    if isinstance(data, str | Path) and str(data):
        return
    if isinstance(data, Mapping):
        # A mapping names its kind of source by one key; this kind decides which other keys are allowed.
        kind = next((key for key in _KINDS if key in data), None)
        if kind is None:
            raise InputError(f"{where}: data must be {forms}, got the keys {listed(data)}")
        for key in data:
            if key not in _KINDS[kind]:
                raise InputError(
                    f"{where}: unknown key {shorten(key)} in data; the known keys are {', '.join(_KINDS[kind])}"
                )
        for key, value in data.items():
            if not isinstance(value, str):
                raise InputError(f"{where}: {key} in data must be a text, got {shorten(value)}")
        # Then check what is special to one kind.
        if kind == "package" and "path" not in data:
            raise InputError(f"{where}: data from a package needs a path inside it")
        if kind == "package":
            check_package(data["package"], data["path"], where)
        if kind == "builtin" and data[kind] not in BUILTIN:
            raise InputError(
                f"{where}: there is no built-in data {shorten(data[kind])}: choose one of {', '.join(BUILTIN)}"
            )
    elif not (isinstance(data, Sequence) and data and all(isinstance(row, Mapping) for row in data)):
        raise InputError(f"{where}: data must be {forms}, got {shorten(data)}")


def absolute_source(data: Any, folder: Path) -> Any:
    """The source with absolute paths, valid in any working directory; its relative paths start at `folder`."""
    if isinstance(data, str | Path):
        return os.path.abspath(folder / os.path.expanduser(data))
    if isinstance(data, Mapping) and "lm_eval" in data:
        own = data["lm_eval"].endswith((".yaml", ".yml"))
        return {**data, "lm_eval": os.path.abspath(folder / data["lm_eval"])} if own else dict(data)
    if isinstance(data, Mapping):
        # `datasets` accepts a local folder, relative to the working directory.
        local = "dataset" in data and os.path.isdir(data["dataset"])
        return {**data, "dataset": os.path.abspath(data["dataset"])} if local else dict(data)
    return [dict(row) for row in data]


def load_pools(data: Any, folder: Path, where: str) -> dict[str, list[Row]]:
    """All rows of a source that `check_source` accepts; paths are relative to `folder`.

    Nested fields can also be named with dots: {"choices": {"text": […]}} has a field "choices.text".
    """
    if isinstance(data, Mapping):
        if "dataset" in data:
            pools = _from_datasets(data, where)
        elif "lm_eval" in data:
            pools = _from_lm_eval(data, folder, where)
        elif "package" in data:
            pools = _from_package(data, where)
        else:
            pools = {"": numbered(BUILTIN[data["builtin"]](), data["builtin"])}
    elif isinstance(data, str | Path):
        pools = _from_path(folder / user_path(data, f"{where}: data"), where)
    else:
        pools = {"": numbered(data, "data")}
    if not any(pools.values()):
        raise InputError(f"{where}: the data is empty: {shorten(data, 80)} holds no rows")
    return {name: rows for name, rows in pools.items() if rows}


def user_path(text: str | Path, what: str) -> Path:
    """A path as the user wrote it, `~` replaced; InputError where there is no such user."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise InputError(f"{what} {shorten(str(text))} names the home folder of an unknown user") from None


def _from_package(data: Mapping[str, str], where: str) -> dict[str, list[Row]]:
    path, package = package_path(data["package"], data["path"], where)
    return _from_path(path, where, package)


def _from_path(path: Path, where: str, package: Path | None = None) -> dict[str, list[Row]]:
    """Rows of a file or a folder of split files; of a package, only of files inside it."""
    try:
        if path.is_file():
            return {"": read_rows(path)}
        if not path.is_dir():
            raise InputError(
                f"{where}: data file {path} does not exist: correct `data:`, relative to the task file, or name it "
                "with --data PATH"
            )
        files = sorted(file for file in path.iterdir() if not file.name.startswith("."))
    except OSError as error:
        raise InputError(f"{where}: cannot read the data {shorten(str(path), 120)}: {error.strerror}") from None
    pools: dict[str, list[Row]] = {}
    for file in files:
        if file.suffix.lower() in SUFFIXES:
            if package is not None:
                require_inside(file, package, where)
            # train-00000-of-00002.parquet is a part of train.
            name = file.stem.split("-0")[0].lower()
            pools.setdefault(name, []).extend(read_rows(file))
    if not pools:
        raise InputError(f"{where}: the folder {path} holds no {', '.join(SUFFIXES)} file")
    return pools


def _from_lm_eval(data: Mapping[str, str], folder: Path, where: str) -> dict[str, list[Row]]:
    task = absolute_source(data, folder)["lm_eval"]
    config = lm_eval.read_config(task)
    if "data" in data:
        return lm_eval.rows_of(config, _from_path(folder / data["data"], where))
    source, files = lm_eval.source_of(config, Path(task).parent)
    return lm_eval.rows_of(config, _from_datasets(source, where, files))


def _from_datasets(data: Mapping[str, str], where: str, files: Mapping[str, Any] | None = None) -> dict[str, list[Row]]:
    """Load by the `datasets` library. files: extra arguments of `load_dataset` that name the user's own data files."""
    name = data["dataset"]
    reached = bool(files) or os.path.isdir(name) or hub_answers()
    # Imported here because it takes seconds, and only this function needs it.
    from datasets import load_dataset

    try:
        with nullcontext() if reached else _offline():
            # Code that comes with a data set is never run.
            options = {"split": data.get("split"), "trust_remote_code": False, **(files or {})}
            loaded = load_dataset(name, data.get("config"), **options)
    except Exception as error:
        # The library raises many kinds of errors: hub, network, format, unknown split.
        if not reached:
            raise InputError(
                f"{where}: the hub cannot be reached, and the dataset {shorten(name)} is neither in its local cache "
                "nor a folder here: check the connection and the name"
            ) from None
        raise InputError(f"{where}: cannot load the dataset {shorten(name)}: {one_line(error)}") from None
    parts = loaded if isinstance(loaded, dict) else {"": loaded}
    return {part: numbered(rows, f"{name} {part}".strip()) for part, rows in parts.items()}


@contextmanager
def _offline() -> Iterator[None]:
    """Inside the block `datasets` uses its cache only, and does not wait for the network."""
    from datasets import config

    names = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")
    before = {name: getattr(config, name) for name in names if hasattr(config, name)}
    for name in before:
        setattr(config, name, True)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(config, name, value)
