"""What a user can choose about the evaluation of candidates: what it may cost, never what comes of it."""

from dataclasses import dataclass

from sieve.errors import InputError
from sieve.utils.messages import shorten

MEMORY = 2 << 30
CLUSTER = "ray://"
"""How the address of a Ray cluster begins."""


@dataclass(frozen=True)
class EngineConfig:
    """The engine's switches.

    layers: candidates share the hidden states of the blocks that they have in common.
    racing: a candidate that cannot win is not asked the remaining examples.
    surrogate: predicted losses choose which candidates are evaluated. Without it `budget` has nothing to go by.
    memory: bytes that shared hidden states may take.
    workers: processes that evaluate candidates, by Ray: a number of them on this machine, or "ray://host:port" for all
        processors of a cluster. The result is the same for any number. None: this process evaluates them.
    """

    layers: bool = True
    racing: bool = True
    surrogate: bool = True
    memory: int = MEMORY
    workers: int | str | None = None

    def check(self) -> "EngineConfig":
        """InputError for a value that cannot work; returns the config itself."""
        if self.memory < 0:
            raise InputError("--memory must not be negative")
        check_workers(self.workers)
        return self


def check_workers(workers: int | str | None) -> None:
    """InputError unless it is None, a number or the address of a cluster."""
    number = isinstance(workers, int) and workers >= 1
    address = isinstance(workers, str) and workers.startswith(CLUSTER)
    if not (workers is None or number or address):
        raise InputError(
            f"--workers must be a number from 1 on or an address {CLUSTER}host:port, got {shorten(workers)}"
        )
