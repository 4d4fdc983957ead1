"""What a user can choose about healing."""

from dataclasses import dataclass

from sieve.errors import InputError
from sieve.utils.options import option


@dataclass(frozen=True)
class HealingConfig:
    """heal: take gradient steps of the pruned model towards the dense one, on calibration rows (`sieve.heal`).
    heal_steps: how many; None: 50, or so many that no row is seen more than twice.
    """

    GROUP = "Method"

    heal: bool = option(False, "Train the pruned model to agree with the dense one, without labels")
    heal_steps: int | None = option(
        None, "Number of healing steps", within="[1, ∞)", shown="50, or two passes over the calibration rows"
    )

    def check(self) -> None:
        """InputError for steps of a healing that is not asked for."""
        if self.heal_steps is not None and not self.heal:
            raise InputError(f"--heal-steps {self.heal_steps} needs --heal: add it, or leave --heal-steps out")
