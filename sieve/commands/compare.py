"""`sieve compare`: finished runs side by side, as a table and as a page."""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from sieve.commands import options as given
from sieve.commands.output import print_json, say_saved
from sieve.utils.terminal import console


def compare(
    folders: Annotated[list[Path], typer.Argument(help="Folders of pruned models.")],
    output: Annotated[Path, typer.Option(help="HTML file to make; one that this command made is replaced.")] = Path(
        "compare.html"
    ),
    as_json: given.Json = False,
) -> None:
    """Compare pruned models: sizes, accuracies with intervals and recipes, printed and on one HTML page."""
    from sieve.run.compare import read_runs, require_page, write_comparison
    from sieve.run.report.html.compare_page import HEAD, by_task, compared, differences_of_data, numbers

    require_page(output)
    runs = read_runs(folders)
    write_comparison(runs, output)
    if as_json:
        print_json({run.name: run.report for run in runs})
    else:
        for task, some in by_task(runs).items():
            table = Table(title=task)
            for name in HEAD:
                table.add_column(name, justify="left" if name == HEAD[0] else "right")
            for run in some:
                table.add_row(*numbers(run))
            console().print(table)
            console().print(compared(some), soft_wrap=True)
            for note in differences_of_data(some):
                console().print(f"note: {note}", style="yellow", soft_wrap=True)
        console().print(f"The page is {output}.", soft_wrap=True)
    say_saved(f"the page is {output}")
