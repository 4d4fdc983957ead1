"""Masks of all matrices: for every rank that a plan can name, the weights that are left."""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from sieve.compression.masks.config import MaskOptions
from sieve.compression.masks.matrix import MaskedMatrix
from sieve.compression.masks.sparsegpt import sparsegpt
from sieve.errors import InputError
from sieve.models.linears import prunable
from sieve.models.matrix import DENSE, Matrix


@dataclass(frozen=True)
class Mask:
    """Nested masks of one matrix.

    weight: W [m, n], the dense model's own (not a copy).
    order: [m, n] integer, the least rank at which a weight is kept (`sieve.compression.masks.nesting`).
    """

    weight: torch.Tensor
    order: torch.Tensor

    def at(self, rank: int) -> torch.Tensor:
        """[m, n], W with what the mask of this rank drops set to zero."""
        return torch.where(self.order <= rank, self.weight, 0)

    def content(self) -> list[float]:
        """Numbers that tell this from other masks."""
        return [self.weight.double().sum().item(), self.order.double().square().sum().item()]


@dataclass(frozen=True)
class CompensatedMask:
    """SparseGPT's of one matrix: solved anew at each rank, since what is kept makes good for what is not.

    weight: W [m, n]. channels: [n]; root: R [n, n], shared by matrices that read one input (`sparsegpt`).
    """

    weight: torch.Tensor
    channels: torch.Tensor
    root: torch.Tensor
    pattern: str
    compare: str

    def at(self, rank: int) -> torch.Tensor:
        """[m, n], the weights that are left at this rank, changed."""
        return sparsegpt(self.weight, self.channels, self.root, rank, self.pattern, self.compare, self.weight.dtype)

    def content(self) -> list[float]:
        """Numbers that tell this from other masks."""
        return [tensor.double().sum().item() for tensor in (self.weight, self.channels, self.root)]


class Masks(dict[str, "Mask | CompensatedMask"]):
    """Matrix name → its masks, with the method that scored them. What `Factors` is to low-rank plans.

    shifts: what each matrix keeps more than a plan's fraction (`ramp`), empty without a ramp.
    """

    pivoted, ridge = False, math.inf

    def __init__(
        self,
        masks: Mapping[str, Mask | CompensatedMask],
        method: str,
        options: MaskOptions,
        shifts: Mapping[str, float],
    ):
        super().__init__(masks)
        self.method, self.options, self.shifts = method, options, dict(shifts)

    def matrices(self, model: nn.Module) -> dict[str, MaskedMatrix]:
        """The model's prunable matrices, as masks see them."""
        return {name: self.matrix(matrix) for name, matrix in prunable(model).items()}

    def matrix(self, matrix: Matrix) -> MaskedMatrix:
        """What masks can make of a matrix."""
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

    def fingerprint(self) -> str:
        """sha256 of the method, its options and what the masks are made of."""
        content = [(name, mask.content()) for name, mask in self.items()]
        return hashlib.sha256(repr((self.method, self.options, self.shifts, content)).encode()).hexdigest()
