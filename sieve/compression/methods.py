"""What a method makes of a model, by the method's name: for callers that serve methods of every kind."""

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
    ) -> CompressionSpace:
        """As `compress` below."""

    def plannable(self, model: PrunableModel, method: str, config: Any) -> dict[str, Matrix]:
        """As `plannable` below."""

    def nbytes(self, model: PrunableModel, method: str, config: Any) -> int:
        """As `result_bytes` below."""


def result_bytes(model: PrunableModel, method: str, config: Any) -> int:
    """Bytes of what `compress` makes beside the model, known from the shapes of its matrices."""
    return _kind(method).nbytes(model, method, config)


def compress(
    model: PrunableModel,
    statistics: Statistics,
    method: str,
    config: Any,
    general: Statistics | None,
    own: dict[str, Any],
) -> CompressionSpace:
    """All plans of a model by one method: the factors of `sieve.project` or the masks of `sieve.mask`.

    Args:
        config: the options of methods of this kind, an instance of `Traits.config`.
        general: statistics of general text, where the config asks for them.
        own: options that the method alone has.
    """
    return _kind(method).compress(model, statistics, method, config, general, own)


def plannable(model: PrunableModel, method: str, config: Any) -> dict[str, Matrix]:
    """The matrices that the method can prune, known from their shapes alone; InputError where there are none."""
    return _kind(method).plannable(model, method, config)


def method_report(space: CompressionSpace, model: PreTrainedModel, **more: Any) -> dict[str, Any] | None:
    """`space.report` and `more`; None where the space has nothing to report."""
    found = space.report(model)
    return None if found is None else found | more


def _kind(method: str) -> Kind:
    return method_named(method).makes.implementation()()
