"""In which order to evaluate candidates so that what they have in common is computed once.

A candidate's key is a tuple with one entry per decoder block. Sorted, candidates are the leaves of a tree of prefixes
in depth-first order: each shares its longest prefix with its predecessor. The states on the way from the root to where
the tree branches next are all that must be kept.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True)
class Step:
    """Evaluate candidate `index` from block `start` on, storing the states entering the blocks `keep`.

    drop: blocks whose stored states are not needed after this step.
    """

    index: int
    start: int
    keep: tuple[int, ...]
    drop: tuple[int, ...]


def schedule(keys: Sequence[tuple[Hashable, ...]], max_stored: int, known: Sequence[int] | None = None) -> list[Step]:
    """The steps that evaluate all candidates, of which no two are equal.

    Args:
        keys: per candidate, one entry per block: equal entries mean an equal block.
        max_stored: how many blocks' states can be stored at a time. Where that is too few, the deepest are: they save
            most.
        known: per candidate, a block whose states are at hand from elsewhere; 0 for none.

    Returns: steps in order. Their blocks that run, Σ (L - start), are the edges of the tree if `max_stored` allows it
        and nothing is `known`. A step starts from what earlier steps stored unless what is known lies deeper.
    """
    ordered = depth_first(keys)
    shared = [0] + [common_prefix(keys[one], keys[two]) for one, two in pairwise(ordered)]
    steps, stored = [], set()
    for place, index in enumerate(ordered):
        # Start from the deepest states that are stored on this candidate's path, or known elsewhere.
        start = max((block for block in stored if block <= shared[place]), default=0)
        start = max(start, known[index] if known else 0)
        # Keep the states where later candidates leave this path. A branch above the start cannot be stored now unless
        # it is already: its states are not computed again.
        wanted = _branches(shared[place + 1 :])
        kept = set(sorted(wanted, reverse=True)[:max_stored])
        new = {block for block in kept if block > start}
        remaining = (stored & wanted) | new
        remaining = set(sorted(remaining, reverse=True)[:max_stored])
        steps.append(Step(index, start, tuple(sorted(new & remaining)), tuple(sorted(stored - remaining))))
        stored = remaining
    return steps


def depth_first(keys: Sequence[tuple[Hashable, ...]]) -> list[int]:
    """Indices of the candidates, depth-first in the tree of their prefixes."""
    return sorted(range(len(keys)), key=lambda index: tuple(map(repr, keys[index])))


def common_prefix(one: tuple, two: tuple) -> int:
    """How many blocks two candidates share before they differ."""
    return next((block for block, (a, b) in enumerate(zip(one, two, strict=True)) if a != b), len(one))


def _branches(shared: Sequence[int]) -> set[int]:
    """Where later candidates leave the present one's path: the running minima of what neighbours share, above 0."""
    found, least = set(), None
    for block in shared:
        if block == 0:
            break
        if least is None or block < least:
            least = block
            found.add(block)
    return found
