"""What a user can choose about the splits of a task."""

from dataclasses import dataclass

from sieve.tasks.splits import check_seed
from sieve.utils.options import option


@dataclass(frozen=True)
class SplitConfig:
    """seed: of the task's splits and of the search, from 0 on."""

    GROUP = "Task"

    seed: int = option(0, "Seed of the task's splits and of the search", check=check_seed)
