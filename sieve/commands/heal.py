"""`sieve heal`: gradient steps for a folder that is finished."""

from pathlib import Path
from typing import Annotated

import typer

from sieve.commands import options as given
from sieve.commands.output import print_json, say_saved
from sieve.utils import progress
from sieve.utils.files import require_new
from sieve.utils.terminal import console


def heal(
    path: Annotated[Path, typer.Argument(help="Folder of a pruned model.")],
    output: Annotated[Path, typer.Option(help="Folder to make for the healed model.")],
    teacher: Annotated[
        str | None, typer.Option(help="The dense model that teaches. \\[default: the one that was pruned]")
    ] = None,
    heal_steps: given.HealSteps = None,
    data: given.Data = None,
    device: given.Device = None,
    trust_remote_code: given.Trust = False,
    as_json: given.Json = False,
    quiet: given.Quiet = False,
) -> None:
    """Heal a pruned folder's model: gradient steps towards its dense model, on calibration rows, no label read."""
    require_new(output)
    with progress.shown(not quiet):
        from sieve.run.heal import heal_folder
        from sieve.run.report.show import show_report

        report = heal_folder(path, output, teacher, heal_steps, data, device or "auto", trust_remote_code)
    if as_json:
        print_json(report)
    else:
        show_report(report, console())
        console().print(f"The healed model is in {output}.", soft_wrap=True)
    say_saved(f"the healed model is in {output}")
