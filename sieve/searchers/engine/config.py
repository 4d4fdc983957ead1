"""What a user can choose about the evaluation of candidates: what it may cost, never what comes of it."""

from dataclasses import dataclass

from sieve.errors import InputError, UnreadOption
from sieve.utils.messages import shorten
from sieve.utils.options import option, require_values

MEMORY = 2 << 30
CLUSTER = "ray://"
"""How the address of a Ray cluster begins."""


def check_workers(workers: int | str | None) -> None:
    """InputError unless it is None, a number or the address of a cluster."""
    number = isinstance(workers, int) and workers >= 1
    address = isinstance(workers, str) and workers.startswith(CLUSTER)
    if not (workers is None or number or address):
        raise InputError(
            f"--workers must be a number from 1 on or an address {CLUSTER}host:port, got {shorten(workers)}"
        )


@dataclass(frozen=True)
class EngineConfig:
    """layers: candidates share the hidden states of the blocks that they have in common.
    memory: bytes that shared hidden states may take.
    workers: processes that evaluate candidates, by Ray: a number of them on this machine, or "ray://host:port" for all
        processors of a cluster. The result is the same for any number. None: this process evaluates them.
    """

    GROUP = "Search"

    layers: bool = option(True, "Run blocks that candidates have in common only once")
    memory: int = option(
        MEMORY, "Bytes that states shared by candidates may take", within="[0, ∞)", shown="2 GiB", group="Machine"
    )
    workers: int | str | None = option(
        None,
        "Number of Ray processes, or the address of a cluster: ray://host:port",
        shown="this process",
        check=check_workers,
        group="Machine",
    )

    def check(self) -> "EngineConfig":
        """InputError for a value, or a combination, that cannot work; returns the config itself."""
        require_values(self)
        if self.memory not in (0, MEMORY) and not self.layers:
            raise UnreadOption(
                "--memory is for the states that candidates share, and --no-layers shares none: leave one of them out",
                "memory",
            )
        return self
