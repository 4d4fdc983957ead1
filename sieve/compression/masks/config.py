"""What a user can choose about masks beyond the method's name."""

from dataclasses import dataclass

from sieve.errors import InputError
from sieve.utils.messages import shorten

PATTERNS = {"unstructured": None, "2:4": (2, 4), "4:8": (4, 8)}
"""Name → (kept, of so many consecutive weights of a row), or None."""

COMPARISONS = ("row", "layer")
FUSIONS = ("mean", "max", "min", "geometric", "concatenate")


@dataclass(frozen=True)
class MaskOptions:
    """Of `sieve.mask`.

    pattern: "unstructured", or N:M: of every M consecutive weights of a row N are kept.
    compare: which weights compete: those of a "row" (every output keeps as many) or of the whole "layer". Not for N:M.
    task_aware: score on general text too, and fuse (DESIGN 2.10).
    tau: τ, channels whose normalised activation norms differ by at most this share, |a - b| / (a + b), are shared. 0
        makes every channel exclusive that differs at all, 1 makes all of them shared.
    fusion: of the scores of shared channels: "mean", "max", "min" or "geometric"; "concatenate" knows no channels and
        scores on both calibration sets put together.
    task_share: of the task in the means, in (0, 1); for "concatenate" its share of the tokens, and for SparseGPT's
        update the task's part in the Gram matrix that is solved.
    ramp: α in [0, 1): matrices keep between α less and α more than the plan says, by the trace of their Hessian
        (`sieve.compression.masks.layerwise_sparsity`). 0: all the same.
    damping: SparseGPT's, of the mean diagonal of the Gram matrix.
    """

    pattern: str = "unstructured"
    compare: str = "row"
    task_aware: bool = False
    tau: float = 0.2
    fusion: str = "mean"
    task_share: float = 0.5
    ramp: float = 0.0
    damping: float = 0.01

    def check(self, method: str) -> "MaskOptions":
        """InputError for a value, or a combination, that could not work; returns the options themselves."""
        for name, known in (("pattern", tuple(PATTERNS)), ("compare", COMPARISONS), ("fusion", FUSIONS)):
            if getattr(self, name) not in known:
                raise InputError(f"unknown {name} {shorten(getattr(self, name))}: choose one of {', '.join(known)}")
        if not 0 <= self.tau <= 1:
            raise InputError(f"--tau must be in [0, 1], got {self.tau}: 0.2 shares channels that differ by a fifth")
        if not 0 < self.task_share < 1:
            raise InputError(f"--task-share must be between 0 and 1, got {self.task_share}")
        if not 0 <= self.ramp < 1:
            raise InputError(f"--ramp must be in [0, 1), got {self.ramp}: 0.1 keeps up to a tenth more or less")
        if not self.damping > 0:
            raise InputError(f"damping must be positive, got {self.damping}")
        if self.pattern != "unstructured":
            if self.compare != "row":
                raise InputError(f"--pattern {self.pattern} compares weights of one row: leave --compare out")
            if self.ramp:
                raise InputError(f"--pattern {self.pattern} has one sparsity only: leave --ramp out")
        if method == "magnitude" and (self.task_aware or self.ramp):
            option = "--task-aware" if self.task_aware else "--ramp"
            raise InputError(f"{option} makes no difference to magnitude, which looks at no data: choose wanda")
        return self
