"""`sieve heal`: gradient steps for a folder that is finished."""

from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any

from sieve.commands.derive import command
from sieve.commands.options import Shown, TaskData, Trust
from sieve.commands.output import print_json, say_saved
from sieve.healing.config import KINDS, LABEL_FREE, check_kind
from sieve.utils import progress
from sieve.utils.files import require_new
from sieve.utils.options import option
from sieve.utils.terminal import console


@dataclass(frozen=True, kw_only=True)
class HealConfig(TaskData, Trust, Shown):
    """What is healed, by what, and where the result goes."""

    path: Path = option(MISSING, "Folder of a pruned model", argument=True, group="Task")
    teacher: str | None = option(None, "Dense model that teaches", shown="the one that was pruned", group="Method")
    kind: str = option(
        LABEL_FREE, "Who teaches: the dense model, the labels, or the dense model by adapters", group="Method",
        choices=KINDS,
    )  # fmt: skip
    output: Path = option(MISSING, "Folder to make for the healed model", group="Output")


@command(HealConfig, "heal_steps", "unlabelled", "device")
def heal(run: HealConfig, given: dict[str, Any]) -> None:
    """Train a pruned model to agree with its dense model.

    The rows are those of the calibration split, and no label is read unless the kind is tuned. A healing that was
    interrupted goes on when the same command is given again.
    """
    require_new(run.output)
    check_kind(run.kind)
    with progress.shown(not run.quiet):
        from sieve.run.heal import heal_folder
        from sieve.run.report.show import show_report

        report = heal_folder(
            run.path, run.output, run.teacher, given.get("heal_steps"), run.data, given.get("device", "auto"),
            run.trust_remote_code, run.kind, given.get("unlabelled"),
        )  # fmt: skip
    if run.as_json:
        print_json(report)
    else:
        show_report(report, console())
        console().print(f"The healed model is in {run.output}.", soft_wrap=True)
    say_saved(f"the healed model is in {run.output}")
