"""A part of the measurement is a list of jobs. A job returns cells: named numbers."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from bench.gpu.sizes import Sizes


class LeftOut(Exception):
    """A job cannot run here; the message is the reason."""


class WrongResult(Exception):
    """An operator is not measured, because its result differs from the library's."""


@dataclass
class Place:
    """Where a job runs: the device, its deadline (in `time.monotonic`), and the folder for its files."""

    device: torch.device
    deadline: float
    folder: Path

    def left(self) -> float:
        """Seconds until the deadline."""
        return self.deadline - time.monotonic()


@dataclass(frozen=True)
class Job:
    """`run` returns the numbers of `cells`. The job is left out if fewer than `seconds` seconds remain, and stopped as
    hanging after `patience` seconds."""

    name: str
    cells: tuple[str, ...]
    run: Callable[[Place], dict[str, float]]
    seconds: float = 3.0
    patience: float = 90.0


@dataclass(frozen=True)
class Part:
    """Jobs that belong together. `weight`: its portion of the remaining time, relative to later parts. `missing()`: why
    the part cannot run here, or ""."""

    name: str
    about: str
    weight: float
    jobs: Callable[[Sizes], list[Job]] = field(repr=False)
    missing: Callable[[], str] = lambda: ""
