"""Masks of all matrices: the remaining weights for every rank that a plan can name."""

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from sieve.checkpoint.folder import write_mask_config
from sieve.compression.masks.config import MaskOptions
from sieve.compression.masks.elastic import ElasticWeights, mask_, masked
from sieve.compression.masks.matrix import MaskedMatrix
from sieve.compression.masks.methods import MASKING
from sieve.compression.masks.sparsegpt import sparsegpt
from sieve.compression.plan import Plan
from sieve.errors import InputError
from sieve.models.matrix import DENSE, Matrix
from sieve.models.prunable_model import PrunableModel
from sieve.nn.fuse import fuse_
from sieve.nn.semi_structured import PATTERN, runs_sparse


@dataclass(frozen=True)
class Mask:
    """Nested masks of one matrix.

    weight: W [m, n], the dense model's own (not a copy).
    thresholds: [m, n] integer, the least rank at which a weight is kept (`sieve.compression.masks.nesting`).
    """

    weight: torch.Tensor
    thresholds: torch.Tensor

    def at(self, rank: int) -> torch.Tensor:
        """W [m, n], with zeros where the mask of this rank drops weights."""
        return torch.where(self.thresholds <= rank, self.weight, 0)

    def content(self) -> list[float]:
        """Numbers that tell this from other masks."""
        return [self.weight.double().sum().item(), self.thresholds.double().square().sum().item()]


@dataclass(frozen=True)
class CompensatedMask:
    """SparseGPT's masks of one matrix: solved for each rank, since kept weights compensate for removed ones.

    weight: W [m, n]. channels: [n]; root: R [n, n], shared by matrices that read one input (`sparsegpt`).
    """

    weight: torch.Tensor
    channels: torch.Tensor
    root: torch.Tensor
    pattern: str
    compare: str

    def at(self, rank: int) -> torch.Tensor:
        """The masked weights [m, n] at this rank; kept ones are changed to compensate."""
        return sparsegpt(self.weight, self.channels, self.root, rank, self.pattern, self.compare, self.weight.dtype)

    def content(self) -> list[float]:
        """Numbers that tell this from other masks."""
        return [tensor.double().sum().item() for tensor in (self.weight, self.channels, self.root)]


class Masks(dict[str, "Mask | CompensatedMask"]):
    """Matrix name → its masks, with the method that scored them. The counterpart of `Factors` for masks.

    shifts: how much more than a plan's fraction each matrix keeps (`ramp`); empty without a ramp.
    """

    pivoted, ridge, shrinkage = False, math.inf, 0.0
    traits = MASKING

    def __init__(
        self,
        masks: Mapping[str, Mask | CompensatedMask],
        method: str,
        options: MaskOptions,
        shifts: Mapping[str, float],
    ):
        super().__init__(masks)
        self.method, self.options, self.shifts = method, options, dict(shifts)

    def only(self, names: Iterable[str]) -> "Masks":
        """The masks of these matrices only."""
        return Masks({name: self[name] for name in names}, self.method, self.options, self.shifts)

    def elastic(self, model: PreTrainedModel | PrunableModel) -> AbstractContextManager[ElasticWeights]:
        """Within the block the model runs whatever plan was last set; afterwards it is the dense model again."""
        return masked(PrunableModel.of(model).model, self)

    @contextmanager
    def stored(self, model: PreTrainedModel | PrunableModel, plan: Mapping[str, int | str]) -> Iterator[None]:
        """Within the block the model has the weights that `apply_` would give it, bit for bit."""
        with self.elastic(model) as elastic:
            elastic.set_plan(plan)
            yield

    def apply_(self, model: PreTrainedModel, plan: Plan) -> None:
        """Mask the weights of the layers that the plan names, in place; modules are not replaced."""
        kept = mask_(model, self, plan)
        fuse_(model)
        write_mask_config(model, kept, self.options.pattern)

    def matrices(self, model: PreTrainedModel | PrunableModel, plan: Plan | None = None) -> dict[str, MaskedMatrix]:
        """The model's prunable matrices, as masks see them."""
        return {name: self.matrix(matrix) for name, matrix in PrunableModel.of(model).matrices().items()}

    def matrix(self, matrix: Matrix) -> MaskedMatrix:
        """The matrix with the sizes that masks allow."""
        shift = self.shifts.get(matrix.name, 0.0)
        return MaskedMatrix(
            matrix.name, matrix.m, matrix.n, matrix.block, pattern=self.options.pattern, shift=shift,
            ramp=self.options.ramp,
        )  # fmt: skip

    def check(self, matrices: Mapping[str, Matrix], plan: Mapping[str, int | str]) -> None:
        """InputError unless these masks fit the matrices and reach every rank of the plan."""
        for name, mask in self.items():
            matrix = matrices.get(name)
            if matrix is None or (matrix.m, matrix.n) != mask.weight.shape:
                raise InputError(f"the masks of {name} do not fit this model: score its own weights again")
        for name, rank in plan.items():
            if rank == DENSE:
                continue
            if name not in self:
                raise InputError(f"the plan masks {name}, but there are no scores for it")
            if self.options.pattern != "unstructured" and rank != matrices[name].max_rank:
                raise InputError(
                    f"the plan has {name} keep {rank} weights a row; {self.options.pattern} keeps "
                    f"{matrices[name].max_rank or 'all'}: use that or 'dense'"
                )

    def report(self, model: PreTrainedModel) -> dict[str, Any]:
        """How weights were scored, and whether zeros save time on this device (they never save bytes)."""
        options = asdict(self.options)
        return {
            "pattern": options.pop("pattern"),
            "options": options,
            "runs_sparse": self.options.pattern == PATTERN and runs_sparse(model.device, model.dtype),
        }

    def spectra(self, plan: Plan) -> None:
        """Nothing: masks have no ranks."""

    def fingerprint(self) -> str:
        """sha256 of the method, its options and the content of the masks."""
        content = [(name, mask.content()) for name, mask in self.items()]
        return hashlib.sha256(repr((self.method, self.options, self.shifts, content)).encode()).hexdigest()
