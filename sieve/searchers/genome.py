"""What a search changes: one level for each gene, a gene being a matrix or several that move together."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sieve.compression.plan import Plan
from sieve.errors import InputError
from sieve.models.matrix import DENSE, Matrix
from sieve.nn.families import LAYERS_OF_ONE_INPUT
from sieve.searchers.config import GRANULARITIES
from sieve.searchers.objective import SizeOf, parameters
from sieve.utils.messages import shorten

LEVELS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 1.0)
PAPER_LEVELS = (0.05, 0.1, 0.2, 0.25, 0.35, 0.5, 0.6, 0.75, 0.9, 1.0)  # DESIGN 2.9


@dataclass(frozen=True)
class Gene:
    """Matrices of one decoder block that move together.

    levels: per level, the smallest first, the rank of each of `names`; the last is dense.
    """

    names: tuple[str, ...]
    block: int
    levels: tuple[tuple[int | str, ...], ...]


class Genome:
    """Genes in the order of the blocks that hold them, and what a vector of levels [G] stands for.

    A vector is int64 [G] with 0 ≤ level < `bounds`; one matrix's ranks grow with its gene's level. `sizes` holds, per
    gene, the size at each of its levels: parameters, unless another objective was chosen.

    Args:
        matrices: what may be pruned.
        size_of: (matrix, rank) → what it costs, by whatever objective; a level that is no smaller than the next larger
            one is dropped.
        kept: the levels' kept fractions. Ranks are rounded up to `multiple`, equal ones dropped, and dense where the
            pair would not be smaller; dense is always a level.
        granularity: "matrix", "group" (q/k/v; gate/up) or "block".

    Raises: InputError where every level of every matrix is dense.
    """

    def __init__(
        self,
        matrices: Mapping[str, Matrix],
        kept: Sequence[float] = LEVELS,
        multiple: int = 8,
        granularity: str = "matrix",
        size_of: SizeOf = parameters,
    ):
        self.matrices = dict(matrices)
        self.pivoted = any(matrix.pivoted for matrix in matrices.values())
        self._size_of = size_of
        self.genes = [_gene(members, kept, multiple, size_of) for members in _members(matrices.values(), granularity)]
        if all(len(gene.levels) == 1 for gene in self.genes):
            raise InputError(
                "no level of any matrix is smaller than dense: choose a smaller --rank-multiple or another --objective"
            )
        self.blocks = np.array([gene.block for gene in self.genes])
        self.bounds = np.array([len(gene.levels) for gene in self.genes])
        self.sizes = [
            np.array([sum(map(self.size_of, gene.names, ranks)) for ranks in gene.levels]) for gene in self.genes
        ]

    def __len__(self) -> int:
        return len(self.genes)

    @property
    def dense(self) -> np.ndarray:
        """The levels of the dense model."""
        return self.bounds - 1

    def size_of(self, name: str, rank: int | str) -> float:
        """Size of one matrix at a rank."""
        return self._size_of(self.matrices[name], rank)

    def size(self, levels: np.ndarray) -> float:
        """Size of the prunable matrices at these levels."""
        return sum(sizes[level].item() for sizes, level in zip(self.sizes, levels, strict=True))

    def plan(self, levels: np.ndarray) -> Plan:
        """The plan that these levels stand for; dense matrices are left out."""
        ranks = {}
        for gene, level in zip(self.genes, levels, strict=True):
            ranks.update(zip(gene.names, gene.levels[level], strict=True))
        return Plan({name: rank for name, rank in ranks.items() if rank != DENSE}, pivoted=self.pivoted)

    def nearest(self, plan: Mapping[str, int | str]) -> np.ndarray:
        """The levels whose sizes are nearest to the plan's, gene by gene."""
        levels = []
        for gene, sizes in zip(self.genes, self.sizes, strict=True):
            wanted = sum(self.size_of(name, plan.get(name, DENSE)) for name in gene.names)
            levels.append(int(np.abs(sizes - wanted).argmin()))
        return np.array(levels)


def _members(matrices: Iterable[Matrix], granularity: str) -> list[list[Matrix]]:
    """Matrices by gene, in the order of the blocks."""
    if granularity not in GRANULARITIES:
        raise InputError(f"unknown granularity {shorten(granularity)}: choose one of {', '.join(GRANULARITIES)}")
    genes: dict[tuple, list[Matrix]] = {}
    for matrix in sorted(matrices, key=lambda matrix: matrix.block):
        place, _, leaf = matrix.name.rpartition(".")
        group = next((group for group in LAYERS_OF_ONE_INPUT if leaf in group), matrix.name)
        key = {"matrix": matrix.name, "group": (place, group), "block": matrix.block}[granularity]
        genes.setdefault((matrix.block, key), []).append(matrix)
    return list(genes.values())


def _gene(members: list[Matrix], kept: Sequence[float], multiple: int, size_of: SizeOf) -> Gene:
    levels = {tuple(matrix.rank_at(fraction, multiple) for matrix in members): None for fraction in sorted(kept)}
    dense = (DENSE,) * len(members)
    levels.pop(dense, None)
    smaller = [dense]
    for ranks in reversed(levels):
        sizes = [sum(map(size_of, members, level)) for level in (ranks, smaller[0])]
        if sizes[0] < sizes[1]:
            smaller.insert(0, ranks)
    return Gene(tuple(matrix.name for matrix in members), members[0].block, tuple(smaller))
