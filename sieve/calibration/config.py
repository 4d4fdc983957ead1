"""What a user can choose about the calibration. Imports no torch."""

from dataclasses import dataclass

from sieve.utils.options import option

MINIMUM_TOKENS = 256
ENOUGH_TOKENS = 16_000


@dataclass(frozen=True)
class CalibrationConfig:
    """calibration_tokens: budget of the calibration pass, padding excluded.
    generated_tokens: how many tokens of text that the dense model generates itself, after a few calibration rows, it
        reads beside them; predicted losses are measured on both.
    """

    GROUP = "Task"

    calibration_tokens: int = option(
        32_768, "Tokens that calibration reads, padding excluded", within=f"[{MINIMUM_TOKENS}, ∞)"
    )
    generated_tokens: int = option(
        0, "Tokens of text that the dense model generates itself, to calibrate with beside the task", within="[0, ∞)"
    )
