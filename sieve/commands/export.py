"""`sieve export`: a pruned model's folder in a format that other tools read."""

from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any

from sieve.checkpoint.export import export as export_folder
from sieve.checkpoint.export import export_formats
from sieve.commands.derive import command
from sieve.commands.options import Quiet, Trust
from sieve.utils import progress
from sieve.utils.options import option
from sieve.utils.terminal import console


@dataclass(frozen=True, kw_only=True)
class ExportConfig(Trust, Quiet):
    """What is exported, and where to."""

    path: Path = option(MISSING, "Folder of a pruned model", argument=True, group="Task")
    output: Path = option(MISSING, "Folder or file to make", argument=True, group="Output")
    to: str = option(MISSING, "Format", choices=export_formats, group="Output")
    device: str = option("cpu", "Device to run on, such as cpu, cuda or cuda:1", group="Machine")


@command(ExportConfig, "dtype")
def export(run: ExportConfig, given: dict[str, Any]) -> None:
    """Write a pruned model in a format of other tools.

    Example: sieve export DIR --to dense OUT
    """
    with progress.shown(not run.quiet):
        export_folder(run.path, run.output, run.to, given.get("dtype", "auto"), run.device, run.trust_remote_code)
    console().print(f"The exported model is in {run.output}.", soft_wrap=True)
