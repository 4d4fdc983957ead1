"""What a user can choose about the calibration. Imports no torch."""

from dataclasses import dataclass

from sieve.utils.options import option

MINIMUM_TOKENS = 256
ENOUGH_TOKENS = 16_000


@dataclass(frozen=True)
class CalibrationConfig:
    """calibration_tokens: budget of the calibration pass, padding excluded."""

    GROUP = "Task"

    calibration_tokens: int = option(
        32_768, "Tokens that calibration reads, padding excluded", within=f"[{MINIMUM_TOKENS}, ∞)"
    )
