"""What a user can choose about low-rank pairs."""

from dataclasses import dataclass

from sieve.errors import InputError, UnreadOption
from sieve.registry import method_named
from sieve.utils.messages import shorten
from sieve.utils.options import option

QUANTIZED = ("int8", "int4")


def check_shrinkage(shrinkage: float | str | None) -> None:
    """InputError unless `sieve.project` can use it."""
    if shrinkage is None or shrinkage == "auto":
        return
    if isinstance(shrinkage, bool) or not isinstance(shrinkage, int | float) or not 0 <= shrinkage <= 1:
        raise InputError(f"shrinkage must be 'auto' or a share in [0, 1], got {shorten(shrinkage)}")


def check_shrinks(shrinkage: float | str | None, method: str) -> None:
    """UnreadOption for a shrinkage of Gram matrices that the method does not solve with."""
    if shrinkage and not method_named(method).solves_gram:
        raise UnreadOption(f"--shrinkage is for Gram matrices, and {method} solves none: leave it out", "shrinkage")


@dataclass(frozen=True)
class LowRankConfig:
    """pivot: store pairs pivoted (DESIGN 2.6): the same maps in fewer parameters, so smaller models in the tolerance.
    shrinkage: share in [0, 1] of a prior in the Gram matrices, or "auto", chosen on held-back examples; None: no prior.
    shared_input: one pair for the matrices that read one input (q, k, v; gate, up): `sieve.share_inputs_`.
    refit: fit pairs again, to the inputs that they get in the pruned model. If `kept` names a size, the pairs of the
        search's plan; else those of the smallest plan beyond it that is then within the tolerance.
    quantize: store the factors in 8 or 4 bits (`sieve.quantize_`), the last step; None: in the model's dtype.
    """

    GROUP = "Method"

    pivot: bool = option(True, "Store pairs pivoted: the same maps in fewer parameters")
    shrinkage: float | str | None = option(
        None,
        "Weight of a prior in the Gram matrices, from 0 to 1, or auto",
        shown="no prior",
        check=check_shrinkage,
    )
    shared_input: bool = option(False, "Make one pair for q, k and v, and one for gate and up")
    refit: bool = option(False, "Fit pairs again to the inputs of the pruned model: smaller models")
    quantize: str | None = option(
        None, "Store the pairs as integers with scales, after everything else", choices=QUANTIZED, shown="in the dtype"
    )

    def check(self, method: str) -> None:
        """UnreadOption for an option that the method does not read."""
        check_shrinks(self.shrinkage, method)
