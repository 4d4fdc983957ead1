"""Masks as one kind of result: how a run gets them from its recipe."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from sieve.calibration.statistics import Statistics
from sieve.compression.masks.config import MaskConfig
from sieve.compression.masks.mask import mask, maskable
from sieve.compression.masks.masks import Masks
from sieve.compression.masks.methods import MASKING
from sieve.compression.masks.nesting import dtype_of
from sieve.models.matrix import Matrix
from sieve.models.prunable_model import PrunableModel
from sieve.registry import implements, method_named


@implements(MASKING)
class Masking:
    """`sieve.mask`, as `sieve.compression.methods.Kind` asks for it."""

    def compress(
        self,
        model: PrunableModel,
        statistics: Statistics,
        method: str,
        config: MaskConfig,
        general: Statistics | None,
        own: dict[str, Any],
        largest: Mapping[str, int] | None,
        release: bool,
    ) -> Masks:
        return mask(model, statistics, method, general, config.options())

    def plannable(self, model: PrunableModel, method: str, config: MaskConfig) -> dict[str, Matrix]:
        maskable(model, config)
        # A ramp's shift of each matrix is known only after scoring.
        return Masks({}, method, replace(config.options(), ramp=0.0), {}).matrices(model)

    def nbytes(self, model: PrunableModel, method: str, config: MaskConfig, largest: Mapping[str, int]) -> int:
        """Of thresholds, or of the roots that matrices of one input share."""
        matrices = model.matrices()
        if method_named(method).compensates:
            return sum(4 * matrices[group[0]].n ** 2 for group in model.input_groups)
        return sum(one.parameters * dtype_of(one.n).itemsize for one in matrices.values())
