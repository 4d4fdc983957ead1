"""A part of the measurement is a list of jobs; a job gives cells, which are numbers with a name."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from bench.gpu.sizes import Sizes


class LeftOut(Exception):
    """A job cannot be done here; the message says why."""


class WrongResult(Exception):
    """An operator is not measured, because its result differs from the library's."""


@dataclass
class Place:
    """Where a job runs: the device, until when (of `time.monotonic`), and the folder for files of its own."""

    device: torch.device
    deadline: float
    folder: Path

    def left(self) -> float:
        """Seconds."""
        return self.deadline - time.monotonic()


@dataclass(frozen=True)
class Job:
    """`run` gives the numbers of `cells`. It is left out where fewer than `seconds` are left, and stopped as one that
    hangs after `patience` seconds."""

    name: str
    cells: tuple[str, ...]
    run: Callable[[Place], dict[str, float]]
    seconds: float = 3.0
    patience: float = 90.0


@dataclass(frozen=True)
class Part:
    """Jobs that belong together. `weight` is the part's claim on the time that is left, beside that of later parts;
    `missing` says why it cannot run here, "" if it can."""

    name: str
    about: str
    weight: float
    jobs: Callable[[Sizes], list[Job]] = field(repr=False)
    missing: Callable[[], str] = lambda: ""
