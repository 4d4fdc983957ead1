"""The projections: what each is and what it asks of calibration. Imports no torch.

A new projection is a row here and a file of its own, whose function says `@implements(ROW)`. It maps a `Problem`
(`sieve.compression.low_rank.problem`) to factors, matrix by matrix; where no Gram matrices are asked for ("none"),
(model, statistics, rank by matrix) to pairs. Its own options are a dataclass beside the row, and keyword arguments of
the function.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sieve.compression.low_rank.config import LowRankConfig
from sieve.registry import Method, Traits, method_named, register

if TYPE_CHECKING:
    from sieve.models.matrix import Matrix
    from sieve.models.prunable_model import PrunableModel

LOW_RANK = Traits(
    "low-rank pairs",
    "projection",
    stage="project",
    default_searcher="budget",
    predictable=True,
    objectives=("parameters", "bytes", "latency"),
    config=LowRankConfig,
    example="output_aligned",
    gives_way=True,
    room=__package__,
)


@dataclass(frozen=True)
class Projection(Method):
    """A method that makes low-rank pairs.

    balanced: the members of a stack (`sieve.share_inputs_`) have equal weight, however large their outputs are.
    solves_gram: the factors follow from the Gram matrix; else it only tells how much output energy each rank keeps.
    """

    room: str = field(default=__package__, kw_only=True)
    makes: Traits = LOW_RANK
    balanced: bool = False
    solves_gram: bool = True


def matrices_of(method: str, model: PrunableModel, pivoted: bool) -> dict[str, Matrix]:
    """What the method prunes of a model: its matrices or, of a method that takes channels, the widths of its MLPs too,
    where they are of a known kind."""
    return model.matrices(pivoted, method_named(method, LOW_RANK).channels)


OUTPUT_ALIGNED = Projection(
    "output_aligned", "least error of the outputs on the task, in closed form", source="DESIGN 2.1", balanced=True
)
LOSS_AWARE = Projection(
    "loss_aware",
    "least error of the outputs, weighed by the gradients of the task's loss",
    source="DESIGN 2.2",
    gradients=True,
    balanced=True,
)
WIDTHS = Projection(
    "widths",
    "MLPs lose hidden channels, whatever else there is becomes pairs as by loss_aware",
    source="DESIGN 2.12",
    gradients=True,
    channels=True,
    balanced=True,
)
SVD = Projection(
    "svd", "singular values of the weights alone", source="arXiv 2312.13558", side="input", solves_gram=False
)
PCA = Projection("pca", "principal components of the inputs", source="arXiv 2401.15024", side="input")
ASVD = Projection(
    "asvd",
    "SVD of the weights, scaled by the size of the inputs",
    source="arXiv 2312.05821",
    side="input",
    solves_gram=False,
)
SVD_LLM = Projection(
    "svd_llm", "SVD of the weights after whitening of the inputs", source="arXiv 2403.07378", side="input"
)
LLM_SIEVE_SGD = Projection(
    "llm_sieve_sgd",
    "LLM-Sieve's own recipe, trained by Adam (in Python only)",
    source="arXiv 2505.18350",
    side="none",
    nested=False,
)

register(OUTPUT_ALIGNED, LOSS_AWARE, WIDTHS, SVD, PCA, ASVD, SVD_LLM, LLM_SIEVE_SGD)
