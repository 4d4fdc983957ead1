"""`sieve push`: a pruned model's folder on a hub."""

from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any

from sieve.commands.derive import command
from sieve.utils import progress
from sieve.utils.options import option
from sieve.utils.terminal import console


@dataclass(frozen=True, kw_only=True)
class PushConfig:
    """What is uploaded, and where to."""

    path: Path = option(MISSING, "Folder of a pruned model", argument=True, group="Task")
    repository: str = option(MISSING, "Repository of the hub, as owner/name", argument=True, group="Output")


@command(PushConfig)
def push(run: PushConfig, given: dict[str, Any]) -> None:
    """Upload a pruned folder to a hub.

    The repository is made private where it is new. Paths of this machine and the task's own rows stay here.
    """
    from sieve.run.push import push as upload

    with progress.shown():
        address = upload(run.path, run.repository)
    console().print(f"{run.path} is at {address}", soft_wrap=True)
