"""`sieve info`: the report of a pruned model."""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from sieve.commands import options as given
from sieve.commands.output import print_json
from sieve.utils.terminal import console


def info(
    path: Annotated[Path, typer.Argument(help="Folder of a pruned model.")],
    matrices: Annotated[bool, typer.Option("--matrices", help="Also the kept fraction of every matrix.")] = False,
    as_json: given.Json = False,
) -> None:
    """Show the report of a pruned model."""
    from sieve.run.report.read import read_report
    from sieve.run.report.show import show_report

    report = read_report(path)
    if as_json:
        print_json(report)
        return
    show_report(report, console())
    if matrices:
        table = Table(title="kept fraction")
        table.add_column("matrix")
        table.add_column("kept", justify="right")
        for name, kept in report["kept"].items():
            table.add_row(name, "dense" if kept == 1 else f"{kept:.3f}")
        console().print(table)
