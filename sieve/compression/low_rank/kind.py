"""Low-rank pairs as one kind of result: how a run gets them from its recipe."""

from collections.abc import Mapping
from typing import Any

from sieve.calibration.collect import sources_of
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
        largest: Mapping[str, int] | None,
        release: bool,
    ) -> Factors:
        given = {"plan": largest, "shrinkage": config.shrinkage, "release": release}
        return project(model, statistics, method, config.pivot, **given, **own)

    def plannable(self, model: PrunableModel, method: str, config: LowRankConfig) -> dict[str, Matrix]:
        return matrices_of(method, model, config.pivot)

    def nbytes(self, model: PrunableModel, method: str, config: LowRankConfig, largest: Mapping[str, int]) -> int:
        """Of the factors, those of an MLP's width in float32, and of the Gram matrices of inputs that pairs keep."""
        matrices = matrices_of(method, model, config.pivot)
        widths = {name for name, one in matrices.items() if isinstance(one, MlpWidth)}
        kept = {source.gram: matrices[name].n for name, source in sources_of(model, method).items()
                if name in matrices.keys() - widths and source.side == "input"}  # fmt: skip
        factors = sum((4 if name in widths else model.dtype.itemsize) * largest[name] * (one.n + one.m)
                      for name, one in matrices.items())  # fmt: skip
        return factors + 4 * sum(n * n for n in kept.values())
