"""What a method makes of a model, by the method's name: for callers that serve methods of every kind."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from transformers import PreTrainedModel

from sieve.calibration.statistics import Statistics
from sieve.compression.low_rank.project import project
from sieve.compression.masks.config import MaskOptions
from sieve.compression.masks.mask import mask, maskable
from sieve.compression.masks.masks import Masks
from sieve.compression.masks.methods import MASKING
from sieve.compression.space import CompressionSpace
from sieve.models.matrix import Matrix
from sieve.models.prunable_model import PrunableModel
from sieve.registry import method_named


def compress(
    model: PrunableModel,
    statistics: Statistics,
    method: str,
    general: Statistics | None,
    pivot: bool,
    shrinkage: float | str | None,
    options: MaskOptions,
    own: Mapping[str, Any],
) -> CompressionSpace:
    """All plans of a model by one method: the factors of `sieve.project` or the masks of `sieve.mask`.

    own: options that the method alone has.
    """
    if method_named(method).makes is MASKING:
        return mask(model, statistics, method, general, options)
    return project(model, statistics, method, pivot, shrinkage=shrinkage, **own)


def plannable(model: PrunableModel, method: str, pivot: bool, options: MaskOptions) -> dict[str, Matrix]:
    """The matrices that the method can prune, known from their shapes alone; InputError where there are none."""
    if method_named(method).makes is not MASKING:
        return model.matrices(pivot)
    maskable(model, options)
    # How far a ramp moves each matrix is known once it is scored.
    return Masks({}, method, replace(options, ramp=0.0), {}).matrices(model)


def method_report(space: CompressionSpace, model: PreTrainedModel, **more: Any) -> dict[str, Any] | None:
    """`space.report` and `more`; None where the space has nothing to report."""
    found = space.report(model)
    return None if found is None else found | more
