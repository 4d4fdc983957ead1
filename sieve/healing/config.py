"""What a user can choose about healing."""

from dataclasses import dataclass, replace

from sieve.errors import InputError
from sieve.utils.messages import shorten
from sieve.utils.options import option

LABEL_FREE, TUNED, LORA = "label-free", "tuned", "lora"
KINDS = (LABEL_FREE, TUNED, LORA)
# Words for the option: label-free where rows and memory allow it, or no healing.
AUTO, NONE = "auto", "none"


def check_kind(kind: str) -> None:
    """InputError unless this is a kind of healing."""
    if kind not in KINDS:
        raise InputError(f"the kind of healing must be one of {', '.join(KINDS)}, got {shorten(kind)}")


def check_unlabelled(file: object, kind: str | None) -> None:
    """InputError for rows without answers where labels are learned from, or nothing is."""
    if file is not None and kind in (None, TUNED):
        raise InputError("--unlabelled is for healing without labels: add --heal label-free, or leave --unlabelled out")


def check_heal(heal: bool | str) -> None:
    """InputError unless the value says whether to heal, or how."""
    if not isinstance(heal, bool) and heal not in (*KINDS, AUTO, NONE):
        raise InputError(f"heal must be one of {', '.join((*KINDS, AUTO, NONE))}, got {shorten(heal)}")


@dataclass(frozen=True)
class HealingConfig:
    """heal: take gradient steps of the pruned model on calibration rows (`sieve.heal`): "label-free" (or true) towards
        the dense model, "tuned" towards the labels, "lora" towards the dense model by adapters; "auto" is
        "label-free" where rows and memory allow it (`sieve.healing.possible`), "none" is no healing.
    rounds: how often the model is pruned and healed, each time to three quarters of the size before, as long as the
        healed model is within the tolerance; the last model within the tolerance is stored.
    heal_steps: number of steps; None: 50, or fewer, so that no row is seen more than twice.
    unlabelled: file with rows that are in no split, for healing to learn from beside the calibration rows
        (`sieve.healing.unlabelled`).
    """

    GROUP = "Method"

    heal: bool | str = option(
        False,
        "Train the pruned model to agree with the dense one, without labels; or, by name: tuned on the labels, lora, "
        "auto (without labels, where rows and memory allow), none",
        bare=LABEL_FREE,
        check=check_heal,
    )
    rounds: int = option(1, "Number of times to prune and heal, each time to a smaller size", within="[1, ∞)")
    heal_steps: int | None = option(
        None, "Number of healing steps", within="[1, ∞)", shown="50, or two passes over the calibration rows"
    )
    unlabelled: str | None = option(
        None, "File of rows without answers, .jsonl, .csv or .parquet, that healing learns from, too", shown="none"
    )

    @property
    def kind(self) -> str | None:
        """The kind of healing that is asked for, of `KINDS`."""
        if self.heal in (False, NONE):
            return None
        return LABEL_FREE if self.heal in (True, AUTO) else self.heal

    def left_out(self) -> "HealingConfig":
        """No healing, nor what asks for some."""
        return replace(self, heal=False, rounds=1, heal_steps=None, unlabelled=None)

    def check(self) -> None:
        """InputError if an option is given that no healing, or not this kind, reads."""
        if self.heal_steps is not None and not self.kind:
            raise InputError(f"--heal-steps {self.heal_steps} needs --heal: add it, or leave --heal-steps out")
        check_unlabelled(self.unlabelled, self.kind)
        if self.rounds > 1 and not self.kind:
            raise InputError(f"--rounds {self.rounds} needs --heal: add it, or leave --rounds out")
