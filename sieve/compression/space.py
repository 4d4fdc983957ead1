"""What plans are of, low-rank factors or masks: the one protocol by which searches and runs use them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

    from sieve.compression.plan import Plan
    from sieve.models.matrix import Matrix
    from sieve.models.prunable_model import PrunableModel
    from sieve.registry import Traits


class Elastic(Protocol):
    """A dense model that runs any plan."""

    def set_plan(self, plan: Mapping[str, int | str]) -> None:
        """Run this plan from now on."""

    def set_batch(self, plans: Sequence[Mapping[str, int | str]]) -> None:
        """Run several plans at a time, each for its part of the rows. Optional."""


class CompressionSpace(Protocol):
    """All plans of one model by one method: matrix name → what every rank makes of it.

    traits: what searches go by. method: its name. pivoted: how pairs are stored. ridge, shrinkage: what the method
    chose, for the report.
    """

    traits: Traits
    method: str
    pivoted: bool
    ridge: float
    shrinkage: float

    def matrices(self, model: PreTrainedModel | PrunableModel, plan: Plan | None = None) -> dict[str, Matrix]:
        """The matrices that can be pruned, and what a rank of each costs (stored as `plan` says, if it is given)."""

    def only(self, names: Iterable[str]) -> CompressionSpace:
        """The space of these matrices alone."""

    def check(self, matrices: Mapping[str, Matrix], plan: Mapping[str, int | str]) -> None:
        """InputError unless the space fits these matrices and reaches every rank of the plan."""

    def fingerprint(self) -> str:
        """sha256 of the method and of what it made."""

    def elastic(self, model: PreTrainedModel | PrunableModel) -> AbstractContextManager[Elastic]:
        """Within the block the model runs whatever plan was last set; afterwards it is the dense model again."""

    def stored(
        self, model: PreTrainedModel | PrunableModel, plan: Mapping[str, int | str]
    ) -> AbstractContextManager[None]:
        """Within the block the model has the weights that `apply_` would give it, bit for bit."""

    def apply_(self, model: PreTrainedModel, plan: Plan) -> None:
        """Put a plan that was checked onto the model, in place."""

    def report(self, model: nn.Module) -> dict[str, Any] | None:
        """What a report says of how the space was made, beyond the method's name; None: nothing."""

    def spectra(self, plan: Plan) -> dict[str, dict[str, int | None]] | None:
        """What a report says of how the output energy of each matrix is spread over ranks; None: nothing."""
