"""`sieve export`: a pruned model's folder in a format that other tools read."""

from pathlib import Path
from typing import Annotated

import typer

from sieve.checkpoint.export import export as export_folder
from sieve.checkpoint.export import export_formats
from sieve.commands import options as given
from sieve.utils import progress
from sieve.utils.terminal import console


def export(
    path: Annotated[Path, typer.Argument(help="Folder of a pruned model.")],
    output: Annotated[Path, typer.Argument(help="Folder or file to make.")],
    to: Annotated[str, typer.Option(help=f"The format: {', '.join(export_formats())}.")],
    dtype: given.Dtype = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, …")] = "cpu",
    trust_remote_code: given.Trust = False,
    quiet: given.Quiet = False,
) -> None:
    """Write a pruned folder's model in a format of other tools: sieve export DIR --to dense OUT."""
    with progress.shown(not quiet):
        export_folder(path, output, to, dtype or "auto", device, trust_remote_code)
    console().print(f"The exported model is in {output}.", soft_wrap=True)
