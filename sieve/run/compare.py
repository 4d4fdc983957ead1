"""`sieve compare`: finished runs side by side."""

from collections.abc import Sequence
from pathlib import Path

from sieve.errors import InputError, StorageError
from sieve.run.recipe import read_recipe
from sieve.run.report.html.compare_page import GENERATOR, Run, compare_page
from sieve.run.report.html.page import generated_by
from sieve.run.report.read import read_report
from sieve.utils.files import write_text
from sieve.utils.messages import one_line


def read_runs(folders: Sequence[str | Path]) -> list[Run]:
    """The runs in these folders, each with the shortest name by which it differs from the others.

    Raises: InputError for a folder without a run, or one that is named twice; StorageError for a damaged report.
    """
    paths = [Path(folder) for folder in folders]
    real = [path.resolve() for path in paths]
    for place, path in enumerate(paths):
        if real[place] in real[:place]:
            raise InputError(f"{path} is named twice: name each folder once")
    short = [path.name for path in real]
    runs = []
    for path, name in zip(paths, short, strict=True):
        recipe = path / "recipe.yaml"
        report = read_report(path)
        named = name if short.count(name) == 1 else str(path)
        runs.append(Run(named, report, read_recipe(recipe) if recipe.is_file() else {}))
    return runs


def require_page(path: str | Path) -> Path:
    """The path, if nothing is there yet, or only a page that this command made."""
    path = Path(path)
    if not path.exists():
        return path
    with_ours = path.is_file() and generated_by(GENERATOR) in path.read_text(encoding="utf-8", errors="replace")[:2000]
    if not with_ours:
        raise InputError(f"{path} already exists, and `sieve compare` did not make it: choose another --output")
    return path


def write_comparison(runs: Sequence[Run], path: Path) -> None:
    """The page of all runs; StorageError if a report has values that no run writes."""
    try:
        text = compare_page(runs)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        names = ", ".join(run.name for run in runs)
        raise StorageError(f"a report.json of {names} is damaged: {type(error).__name__}: {one_line(error)}") from error
    write_text(path, text)
