"""Nested factors: one pair (A, B) per matrix whose leading slices serve every rank."""

import hashlib
import math
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager

from torch import nn
from transformers import PreTrainedModel

from sieve.checkpoint.folder import write_quantization_config
from sieve.compression.low_rank.elastic import ElasticModel, elastic_pairs
from sieve.compression.low_rank.methods import LOW_RANK, matrices_of
from sieve.compression.low_rank.pair import FactorPair
from sieve.compression.low_rank.stored import put_pairs_, with_pairs
from sieve.compression.plan import Plan
from sieve.errors import InputError
from sieve.models.matrix import DENSE, Matrix
from sieve.models.prunable_model import PrunableModel
from sieve.nn.fuse import fuse_


class Factors(dict[str, FactorPair]):
    """Matrix name → `FactorPair`, with the method that made them and whether their pairs are to be stored pivoted.

    `ridge` is what the loss-aware method chose (`choose_ridge`), infinite where gradients have no say; `shrinkage` the
    share of a prior in the Gram matrices (`choose_shrinkage`).
    """

    def __init__(
        self,
        pairs: Mapping[str, FactorPair],
        method: str,
        pivoted: bool = False,
        ridge: float = math.inf,
        shrinkage: float = 0.0,
    ):
        super().__init__(pairs)
        self.method, self.pivoted, self.ridge, self.shrinkage = method, pivoted, ridge, shrinkage

    traits = LOW_RANK

    def matrices(self, model: PreTrainedModel | PrunableModel, plan: Plan | None = None) -> dict[str, Matrix]:
        """The model's prunable matrices, as these factors (or this plan) store them."""
        return matrices_of(self.method, PrunableModel.of(model), self.pivoted if plan is None else plan.pivoted)

    def only(self, names: Iterable[str]) -> "Factors":
        """The factors of these matrices alone."""
        return Factors({name: self[name] for name in names}, self.method, self.pivoted, self.ridge, self.shrinkage)

    def elastic(self, model: PreTrainedModel | PrunableModel) -> AbstractContextManager[ElasticModel]:
        """Within the block the model runs whatever plan was last set; afterwards it is the dense model again."""
        return elastic_pairs(model, self)

    def stored(
        self, model: PreTrainedModel | PrunableModel, plan: Mapping[str, int | str]
    ) -> AbstractContextManager[None]:
        """Within the block the model has the weights that `apply_` would give it, bit for bit."""
        return with_pairs(model, self, Plan(plan).ranks(), self.pivoted)

    def apply_(self, model: PreTrainedModel, plan: Plan) -> None:
        """Replace the layers that the plan prunes by their pairs, in place."""
        put_pairs_(model, self, plan.ranks(), plan.pivoted)
        fuse_(model)
        write_quantization_config(model)

    def report(self, model: nn.Module) -> None:
        """Nothing: ridge and shrinkage have places of their own."""

    def spectra(self, plan: Plan) -> dict[str, dict[str, int | None]]:
        """Name → full rank, the ranks that hold 90 and 99 % of the output energy, and the plan's (None: dense)."""
        ranks = plan.ranks()
        return {
            name: {
                "full": len(pair.energy),
                "holds_90": pair.rank_holding(0.9),
                "holds_99": pair.rank_holding(0.99),
                "kept": ranks.get(name),
            }
            for name, pair in self.items()
        }

    def fingerprint(self) -> str:
        """sha256 of the method and what the factors add up to."""
        sums = [(name, pair.A.double().sum().item(), pair.B.double().sum().item()) for name, pair in self.items()]
        return hashlib.sha256(repr((self.method, self.pivoted, sums)).encode()).hexdigest()

    def check(self, matrices: Mapping[str, Matrix], plan: Mapping[str, int | str]) -> None:
        """InputError unless these factors fit the matrices and reach every rank of the plan."""
        for name, pair in self.items():
            matrix = matrices.get(name)
            if matrix is None or (matrix.m, matrix.n) != (pair.B.shape[0], pair.A.shape[1]):
                raise InputError(
                    f"the factors of {name} do not fit this model: project them again from its own weights "
                    "(sieve.apply_ works on the dense model)"
                )
        for name, rank in plan.items():
            if rank == DENSE:
                continue
            if name not in self:
                raise InputError(f"the plan prunes {name}, but there are no factors for it")
            if rank > self[name].max_rank:
                raise InputError(
                    f"the plan gives {name} rank {rank}; above {self[name].max_rank} a pair is no smaller "
                    "than the matrix, so use 'dense'"
                )
