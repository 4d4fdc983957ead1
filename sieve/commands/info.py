"""`sieve info`: the report of a pruned model."""

from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from sieve.commands.derive import command
from sieve.commands.options import AsJson
from sieve.commands.output import print_json
from sieve.utils.options import option
from sieve.utils.terminal import console


@dataclass(frozen=True, kw_only=True)
class InfoConfig(AsJson):
    """Which report, and how much of it."""

    path: Path = option(MISSING, "Folder of a pruned model", argument=True, group="Task")
    matrices: bool = option(False, "Show the kept fraction of every matrix, too", group="Output")


@command(InfoConfig)
def info(run: InfoConfig, given: dict[str, Any]) -> None:
    """Show the report of a pruned model."""
    from sieve.run.report.read import read_report
    from sieve.run.report.show import show_report

    report = read_report(run.path)
    if run.as_json:
        print_json(report)
        return
    show_report(report, console())
    if run.matrices:
        table = Table(title="kept fraction")
        table.add_column("matrix")
        table.add_column("kept", justify="right")
        for name, kept in report["kept"].items():
            table.add_row(name, "dense" if kept == 1 else f"{kept:.3f}")
        console().print(table)
