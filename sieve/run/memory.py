"""What a user can choose about the memory of a run. Imports no torch."""

import re
from dataclasses import dataclass

from sieve.errors import InputError
from sieve.utils.messages import shorten
from sieve.utils.options import LARGEST, option

_UNITS = {"": 1, "B": 1} | {
    f"{letter}{kind}": base**power
    for power, letter in enumerate("KMGT", 1)
    for kind, base in (("B", 1000), ("iB", 1024))
}
_SIZE = re.compile(r"(\d{1,19}(?:\.\d{1,19})?)\s*([KMGT]?i?B)?")


def to_bytes(size: int | str) -> int:
    """The number of bytes of a size such as 4000000000 or "4GiB"; InputError for anything else."""
    number = size
    if isinstance(size, str):
        found = _SIZE.fullmatch(size.strip())
        known = found and (found[2] or "") in _UNITS
        number = int(float(found[1]) * _UNITS[found[2] or ""]) if known else 0
    if isinstance(size, bool) or not 0 < number <= LARGEST:
        raise InputError(f"--memory-limit must be a number of bytes or a size such as 4GiB, got {shorten(size)}")
    return number


def check_memory_limit(size: int | str | None) -> None:
    """InputError unless it is None or a size."""
    if size is not None:
        to_bytes(size)


@dataclass(frozen=True)
class MemoryConfig:
    """memory_limit: bytes that a run may take on its device, a number or a text such as "4GiB", also more than is free;
    None: what is free."""

    GROUP = "Machine"

    memory_limit: int | str | None = option(
        None,
        "Memory that the run may take on its device: bytes, or a size such as 4GiB",
        shown="what is free",
        check=check_memory_limit,
        group="Machine",
    )

    @property
    def allowed(self) -> int | None:
        """The limit in bytes."""
        return None if self.memory_limit is None else to_bytes(self.memory_limit)
