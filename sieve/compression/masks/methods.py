"""The ways to score weights for a mask. Imports no torch.

To add one, add a row here and a class in `scores.py` (or a file of its own) with `@implements(ROW)`.
"""

from dataclasses import dataclass, field

from sieve.compression.masks.config import MaskConfig
from sieve.registry import Method, Traits, register

MASKING = Traits(
    "masks",
    "mask",
    stage="score",
    default_searcher="uniform",
    predictable=False,
    objectives=("parameters",),
    config=MaskConfig,
    example="wanda",
    room=__package__,
)


@dataclass(frozen=True)
class MaskMethod(Method):
    """A method that sets weights to zero.

    compensates: the kept weights change to compensate for the removed ones, so each rank is solved separately.
    """

    room: str = field(default=__package__, kw_only=True)
    makes: Traits = MASKING
    side: str = "input"
    compensates: bool = False


MAGNITUDE = MaskMethod("magnitude", "size of the weight, without data", source="arXiv 1506.02626", side="none")
WANDA = MaskMethod("wanda", "weight times the norm of its input channel", source="arXiv 2306.11695")
SPARSEGPT = MaskMethod(
    "sparsegpt", "weights that are kept make up for those that go", source="arXiv 2301.00774", compensates=True
)
RIA = MaskMethod("ria", "weight relative to its row and column, times activations", source="arXiv 2402.18004")

register(MAGNITUDE, WANDA, SPARSEGPT, RIA)
