"""`sieve compare`: finished runs side by side, as a table and as a page."""

from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from sieve.commands.derive import command
from sieve.commands.options import AsJson
from sieve.commands.output import print_json, say_saved
from sieve.utils.options import option
from sieve.utils.terminal import console

SHORT = ("run", "removed", "pruned", "pruned − dense", "search")
"""The columns of the page that fit into a narrow terminal."""


@dataclass(frozen=True, kw_only=True)
class CompareConfig(AsJson):
    """Which runs are compared, and where the page goes."""

    folders: list[Path] = option(MISSING, "Folders of pruned models", argument=True, group="Task")
    output: Path = option(
        Path("compare.html"), "HTML file to make; one that this command made is replaced", group="Output"
    )


@command(CompareConfig)
def compare(run: CompareConfig, given: dict[str, Any]) -> None:
    """Compare pruned models in a table and on a page.

    Both show sizes, accuracies with intervals, and recipes.
    """
    from sieve.run.compare import read_runs, require_page, write_comparison
    from sieve.run.report.html.compare_page import HEAD, by_task, compared, differences_of_data, numbers

    require_page(run.output)
    runs = read_runs(run.folders)
    write_comparison(runs, run.output)
    if run.as_json:
        print_json({one.name: one.report for one in runs})
    else:
        for task, some in by_task(runs).items():
            table = Table(title=task)
            for name in SHORT:
                table.add_column(name, justify="left" if name == SHORT[0] else "right")
            for one in some:
                known = dict(zip(HEAD, numbers(one), strict=True))
                table.add_row(*(known[name] for name in SHORT))
            console().print(table)
            console().print(compared(some), soft_wrap=True)
            for note in differences_of_data(some):
                console().print(f"note: {note}", style="yellow", soft_wrap=True)
        console().print(f"The page is {run.output}.", soft_wrap=True)
    say_saved(f"the page is {run.output}")
