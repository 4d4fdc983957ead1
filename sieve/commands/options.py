"""Options of several commands that do not decide the result, so no recipe holds them."""

from dataclasses import MISSING, dataclass
from pathlib import Path

from sieve.models.config import WHICH_MODEL
from sieve.utils.options import option


@dataclass(frozen=True, kw_only=True)
class AsJson:
    """How a command prints its result."""

    as_json: bool = option(False, "Print the result as JSON", flags=("--json",), group="Output")


@dataclass(frozen=True, kw_only=True)
class Quiet:
    """Whether a command shows its progress."""

    quiet: bool = option(False, "Show no progress", flags=("--quiet", "-q"), group="Output")


@dataclass(frozen=True, kw_only=True)
class Shown(AsJson, Quiet):
    """Options for what a command shows."""


@dataclass(frozen=True, kw_only=True)
class Trust:
    """Options for what a command may run."""

    trust_remote_code: bool = option(
        False, "Run code that the model brings. Read it first: it can do what you can", group="Machine"
    )


@dataclass(frozen=True, kw_only=True)
class TaskData:
    """The option that names a task's data."""

    data: Path | None = option(None, "Data file or folder, instead of the one that the task names", group="Task")


@dataclass(frozen=True, kw_only=True)
class Scored(TaskData, Trust):
    """Options of commands that run a model on a task's data."""

    model: str = option(MISSING, WHICH_MODEL, argument=True, group="Task")
