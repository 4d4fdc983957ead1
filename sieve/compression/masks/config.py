"""What a user can choose about masks beyond the method's name."""

from dataclasses import dataclass, fields

from sieve.errors import InputError, UnreadOption
from sieve.registry import method_named
from sieve.utils.options import option, options_of, require_values

PATTERNS = {"unstructured": None, "2:4": (2, 4), "4:8": (4, 8)}
"""Name → (N, M): keep N of every M consecutive weights of a row; None: any."""

COMPARISONS = ("row", "layer")
FUSIONS = ("mean", "max", "min", "geometric", "concatenate")
_UNWEIGHTED = ("max", "min")


@dataclass(frozen=True)
class MaskOptions:
    """Options of `sieve.mask`.

    pattern: "unstructured", or N:M: of every M consecutive weights of a row N are kept.
    compare: which weights compete: those of a "row" (every row keeps the same number) or of a "layer". Not for N:M.
    task_aware: score on general text too, and fuse (DESIGN 2.10).
    tau: τ; channels whose normalised activation norms differ by at most τ, |a - b| / (a + b) ≤ τ, are shared. 0
        makes every differing channel exclusive, 1 makes all channels shared.
    fusion: how scores of shared channels are fused: "mean", "max", "min" or "geometric"; "concatenate" ignores channels
        and scores on both calibration sets put together.
    task_share: the task's weight in the means, in (0, 1); for "concatenate" its share of the tokens; for SparseGPT's
        update the task's part in the Gram matrix that is solved.
    ramp: α in [0, 1): matrices keep between α less and α more than the plan says, by the trace of their Hessian
        (`sieve.compression.masks.layerwise_sparsity`). 0: all the same.
    damping: for SparseGPT, as a fraction of the mean diagonal of the Gram matrix.
    """

    GROUP = "Method"

    pattern: str = option("unstructured", "Masks: pattern of the zeros", choices=tuple(PATTERNS))
    compare: str = option("row", "Masks: what weights compete in", choices=COMPARISONS)
    task_aware: bool = option(False, "Masks: score weights on general text and on the task")
    tau: float = option(
        0.2,
        "Masks: share channels whose norms differ by at most this",
        within="[0, 1]",
        hint="0.2 shares channels that differ by a fifth",
    )
    fusion: str = option("mean", "Masks: how scores of shared channels are fused", choices=FUSIONS)
    task_share: float = option(0.5, "Masks: weight of the task against general text", within="(0, 1)")
    ramp: float = option(
        0.0,
        "Masks: how much more or less a matrix may keep, by its Hessian",
        within="[0, 1)",
        hint="0.1 keeps up to a tenth more or less",
    )
    damping: float = option(0.01, "Masks: damping of SparseGPT, times the mean diagonal", within="(0, ∞)")

    def check(self, method: str) -> "MaskOptions":
        """InputError for a value, or a combination, that cannot work; returns the options themselves."""
        require_values(self)
        if self.pattern != "unstructured":
            if self.compare != "row":
                raise InputError(f"--pattern {self.pattern} compares weights of one row: leave --compare out")
            if self.ramp:
                raise InputError(f"--pattern {self.pattern} has one sparsity only: leave --ramp out")
        if method_named(method).side == "none" and (self.task_aware or self.ramp):
            option = "--task-aware" if self.task_aware else "--ramp"
            raise InputError(f"{option} makes no difference to {method}, which looks at no data: choose wanda")
        self._check_unread(method)
        return self

    def _check_unread(self, method: str) -> None:
        """UnreadOption for an option that the others, or the method, leave without a meaning."""
        compensates = method_named(method).compensates
        if not self.task_aware:
            unread, why = ("tau", "fusion", "task_share", "general"), "masks that are --task-aware only"
        elif self.fusion == "concatenate":
            unread, why = ("tau",), "scores that are fused, and --fusion concatenate fuses none"
        elif self.fusion in _UNWEIGHTED and not (compensates or self.ramp):
            # Else the share also weighs the Gram matrices of both sets.
            unread, why = ("task_share",), f"means, and --fusion {self.fusion} takes none"
        else:
            unread, why = (), ""
        for name, one in options_of(type(self)).items():
            if getattr(self, name) == one.default:
                continue
            if name in unread:
                raise UnreadOption(f"{one.flag} is for {why}: leave it out", name)
            if name == "damping" and not compensates:
                raise UnreadOption(f"--damping is for sparsegpt, and {method} has none: leave it out", name)


@dataclass(frozen=True)
class MaskConfig(MaskOptions):
    """The same in a recipe, with the general text that task-aware masks score on: "general" or a task file."""

    general: str = option("general", "Masks: general text, a task file of type perplexity", shown="Wikipedia and news")

    def options(self) -> MaskOptions:
        """The options of `sieve.mask`."""
        return MaskOptions(**{one.name: getattr(self, one.name) for one in fields(MaskOptions)})
