"""What a user can choose about the calibration: how many tokens, and how far their sums are trusted."""

from sieve.errors import InputError
from sieve.utils.messages import shorten

MINIMUM_TOKENS = 256
ENOUGH_TOKENS = 16_000


def check_shrinkage(shrinkage: float | str | None) -> None:
    """InputError unless `sieve.project` can use it."""
    if shrinkage is None or shrinkage == "auto":
        return
    if isinstance(shrinkage, bool) or not isinstance(shrinkage, int | float) or not 0 <= shrinkage <= 1:
        raise InputError(f"shrinkage must be 'auto' or a share in [0, 1], got {shorten(shrinkage)}")
