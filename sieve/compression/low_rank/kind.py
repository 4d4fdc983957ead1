"""Low-rank pairs as one kind of result: how a run gets them from its recipe."""

from typing import Any

from sieve.calibration.statistics import Statistics
from sieve.compression.low_rank.config import LowRankConfig
from sieve.compression.low_rank.factors import Factors
from sieve.compression.low_rank.methods import LOW_RANK, matrices_of
from sieve.compression.low_rank.project import project
from sieve.models.matrix import Matrix
from sieve.models.mlp_width import MlpWidth
from sieve.models.prunable_model import PrunableModel
from sieve.registry import implements


@implements(LOW_RANK)
class LowRank:
    """`sieve.project`, as `sieve.compression.methods.Kind` asks for it."""

    def compress(
        self,
        model: PrunableModel,
        statistics: Statistics,
        method: str,
        config: LowRankConfig,
        general: Statistics | None,
        own: dict[str, Any],
    ) -> Factors:
        return project(model, statistics, method, config.pivot, shrinkage=config.shrinkage, **own)

    def plannable(self, model: PrunableModel, method: str, config: LowRankConfig) -> dict[str, Matrix]:
        return matrices_of(method, model, config.pivot)

    def nbytes(self, model: PrunableModel, method: str, config: LowRankConfig) -> int:
        """Of the factors; those of an MLP's width are square, and float32."""
        itemsize = model.dtype.itemsize
        return sum(
            4 * one.n * (one.n + one.m) if isinstance(one, MlpWidth) else itemsize * one.max_rank * (one.n + one.m)
            for one in matrices_of(method, model, config.pivot).values()
        )
