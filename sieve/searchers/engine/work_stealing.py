"""Which worker evaluates which candidate: segments of neighbours in the tree of prefixes, one for each worker.

A segment is a piece of the depth-first order, so its worker computes once what the candidates in it share. A worker
that has finished its own takes half of the longest one that waits, so that no worker is idle while a candidate waits.
"""

from collections import deque
from collections.abc import Hashable, Sequence

from sieve.searchers.engine.prefix_tree import common_prefix, depth_first


class CandidateQueue:
    """The candidates of one call.

    Args:
        keys: per candidate, one entry per block, no two candidates equal.
        number: of workers.
    """

    def __init__(self, keys: Sequence[tuple[Hashable, ...]], number: int):
        self._keys = keys
        self._free: deque[list[int]] = deque([depth_first(keys)] if keys else [])
        self._held: dict[Hashable, deque[int]] = {}
        # Cut the longest segment until there is one for each worker.
        while len(self._free) < number and max(map(len, self._free), default=0) > 1:
            longest = max(range(len(self._free)), key=lambda place: len(self._free[place]))
            segment = self._free[longest]
            cut = self._cut(segment)
            self._free[longest] = segment[:cut]
            self._free.insert(longest + 1, segment[cut:])

    def next(self, worker: Hashable) -> tuple[int, list[int] | None] | None:
        """The candidate that a worker evaluates next, and its segment where that is a new one; None: nothing waits."""
        segment, new = self._held.get(worker), None
        if not segment:
            new = self._free.popleft() if self._free else self._stolen()
            if new is None:
                return None
            segment = self._held[worker] = deque(new)
        return segment.popleft(), new

    def give_back(self, worker: Hashable, index: int) -> None:
        """A worker is lost while it evaluates `index`: that and the rest of its segment wait for another worker."""
        self._free.append([index, *self._held.pop(worker)])

    def _stolen(self) -> list[int] | None:
        """The second half of the longest segment."""
        segment = max(self._held.values(), key=len, default=())
        if not segment:
            return None
        cut = self._cut(list(segment)) if len(segment) > 1 else 0
        return [segment.pop() for _ in range(len(segment) - cut)][::-1]

    def _cut(self, segment: Sequence[int]) -> int:
        """Where to cut a segment in two: in its middle third between the neighbours that share least."""
        third = max(len(segment) // 3, 1)

        def shared(place: int) -> tuple[int, int]:
            neighbours = self._keys[segment[place - 1]], self._keys[segment[place]]
            return common_prefix(*neighbours), abs(2 * place - len(segment))

        return min(range(third, len(segment) - third + 1), key=shared)
