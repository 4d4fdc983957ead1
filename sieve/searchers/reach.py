"""Whether any plan is as small as what is asked for: known from the shapes of the matrices, before any long work."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from sieve.errors import UnreachableSize
from sieve.models.matrix import DENSE, Matrix
from sieve.searchers.config import Options
from sieve.searchers.genome import LEVELS, Genome
from sieve.searchers.objective import size_of

if TYPE_CHECKING:
    from sieve.searchers.algorithms.base import Searcher

STEPS = 50  # kept fractions 1/50, 2/50, … : finer than fitness data of a few hundred examples can tell apart


def multiple_for(device: torch.device, rank_multiple: int | None) -> int:
    """What ranks are rounded up to."""
    return rank_multiple or (8 if device.type == "cpu" else 32)


def require_plans(
    matrices: Mapping[str, Matrix], searcher: "Searcher", options: Options, multiple: int, dtype: torch.dtype
) -> None:
    """InputError where no plan removes anything; UnreachableSize where none does as much as `options.kept` asks for.

    Latency is measured when the search begins; before, there is no more to say of it than which ranks there are.
    """
    timed = options.objective == "latency"
    genome = Genome(
        matrices, _levels(searcher), multiple, size_of=size_of("parameters" if timed else options.objective, dtype)
    )
    if not timed:
        require_reachable(options, genome.size(genome.dense * 0), genome.size(genome.dense))


def largest_ranks(matrices: Mapping[str, Matrix], searcher: "Searcher", multiple: int) -> dict[str, int]:
    """The largest rank below dense that any plan of the searcher gives each matrix; where there is none, all ranks."""
    found = {}
    for name, matrix in matrices.items():
        ranks = [matrix.rank_at(share, multiple) for share in _levels(searcher)]
        found[name] = max((rank for rank in ranks if rank != DENSE), default=matrix.max_rank)
    return found


def _levels(searcher: "Searcher") -> Sequence[float]:
    return LEVELS if searcher.per_matrix else [step / STEPS for step in range(1, STEPS + 1)]


def require_reachable(options: Options, smallest: float, dense: float) -> None:
    """UnreachableSize where even the smallest plan is larger than what is asked for."""
    if options.kept is not None and smallest > options.kept * dense:
        raise UnreachableSize(
            f"no plan keeps {options.kept:.1%} of the prunable {options.objective}; the smallest keeps "
            f"{smallest / dense:.1%}: raise --kept or lower --rank-multiple"
        )
