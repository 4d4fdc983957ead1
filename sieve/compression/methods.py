"""What a method makes of a model, by the method's name: for callers that serve methods of every kind."""

from collections.abc import Mapping
from typing import Any, Protocol

from transformers import PreTrainedModel

from sieve.calibration.statistics import Statistics
from sieve.compression.space import CompressionSpace
from sieve.models.matrix import Matrix
from sieve.models.prunable_model import PrunableModel
from sieve.registry import method_named


class Kind(Protocol):
    """What makes the results of one kind of method; it says `@implements` of their traits."""

    def compress(
        self,
        model: PrunableModel,
        statistics: Statistics,
        method: str,
        config: Any,
        general: Statistics | None,
        own: dict[str, Any],
        largest: Mapping[str, int] | None,
        release: bool,
    ) -> CompressionSpace:
        """As `compress` below."""

    def plannable(self, model: PrunableModel, method: str, config: Any) -> dict[str, Matrix]:
        """As `plannable` below."""

    def nbytes(self, model: PrunableModel, method: str, config: Any, largest: Mapping[str, int]) -> int:
        """As `result_bytes` below."""


def result_bytes(model: PrunableModel, method: str, config: Any, largest: Mapping[str, int]) -> int:
    """Bytes of what `compress` makes of released statistics, beside the model: known from the matrices' shapes."""
    return _kind(method).nbytes(model, method, config, largest)


def compress(
    model: PrunableModel,
    statistics: Statistics,
    method: str,
    config: Any,
    general: Statistics | None,
    own: dict[str, Any],
    largest: Mapping[str, int] | None = None,
    release: bool = False,
) -> CompressionSpace:
    """All plans of a model by one method: the factors of `sieve.project` or the masks of `sieve.mask`.

    Args:
        config: the options of methods of this kind, an instance of `Traits.config`.
        general: statistics of general text, where the config asks for them.
        own: options that the method alone has.
        largest: matrix name → the largest rank that any plan will ask for, where methods can spare the others.
        release: the statistics serve nothing else, so that methods may give up what they have used.
    """
    found = _kind(method).compress(model, statistics, method, config, general, own, largest, release)
    for used in filter(None, (statistics, general)) if release else ():
        used.grams.clear()
    return found


def plannable(model: PrunableModel, method: str, config: Any) -> dict[str, Matrix]:
    """The matrices that the method can prune, known from their shapes alone; InputError where there are none."""
    return _kind(method).plannable(model, method, config)


def method_report(space: CompressionSpace, model: PreTrainedModel, **more: Any) -> dict[str, Any] | None:
    """`space.report` and `more`; None where the space has nothing to report."""
    found = space.report(model)
    return None if found is None else found | more


def _kind(method: str) -> Kind:
    return method_named(method).makes.implementation()()
