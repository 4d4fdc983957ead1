"""Who evaluates what: candidates in runs of neighbours in the tree of their prefixes, a run for each worker.

A run is a piece of the depth-first order, so that whoever has it computes once what its candidates share. Whoever has
none left takes half of the longest run that waits, so that nobody is idle while a candidate waits.
"""

from collections import deque
from collections.abc import Hashable, Sequence

from sieve.searchers.engine.prefix_tree import common, order


class Shares:
    """The candidates of one call.

    Args:
        keys: per candidate, one entry per block, no two candidates equal.
        number: of workers.
    """

    def __init__(self, keys: Sequence[tuple[Hashable, ...]], number: int):
        self._keys = keys
        self._free: deque[list[int]] = deque([order(keys)] if keys else [])
        self._held: dict[Hashable, deque[int]] = {}
        while len(self._free) < number and max(map(len, self._free), default=0) > 1:
            longest = max(range(len(self._free)), key=lambda place: len(self._free[place]))
            run = self._free[longest]
            cut = self._cut(run)
            self._free[longest] = run[:cut]
            self._free.insert(longest + 1, run[cut:])

    def next(self, worker: Hashable) -> tuple[int, list[int] | None] | None:
        """The candidate that a worker is to evaluate next, and its run where that is a new one; None: nothing waits."""
        run, new = self._held.get(worker), None
        if not run:
            new = self._free.popleft() if self._free else self._taken()
            if new is None:
                return None
            run = self._held[worker] = deque(new)
        return run.popleft(), new

    def lost(self, worker: Hashable, index: int) -> None:
        """A worker is gone, and `index` with it: that and the rest of its run wait for somebody else."""
        self._free.append([index, *self._held.pop(worker)])

    def _taken(self) -> list[int] | None:
        """The second half of the longest run."""
        run = max(self._held.values(), key=len, default=())
        if not run:
            return None
        cut = self._cut(list(run)) if len(run) > 1 else 0
        return [run.pop() for _ in range(len(run) - cut)][::-1]

    def _cut(self, run: Sequence[int]) -> int:
        """Where to cut a run in two: in its middle third between the neighbours that share least."""
        third = max(len(run) // 3, 1)

        def shared(place: int) -> tuple[int, int]:
            return common(self._keys[run[place - 1]], self._keys[run[place]]), abs(2 * place - len(run))

        return min(range(third, len(run) - third + 1), key=shared)
