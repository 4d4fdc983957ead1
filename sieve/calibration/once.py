"""Sums that take in every row of a batch once, also where the batch runs again in halves for lack of memory."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from sieve.models.halving import indivisible


class OnlyOnce:
    """Which sums have taken in which rows of the batch that is under way.

    A pass that breaks off has added its rows to the sums of the layers that it reached. Its halves reach these layers
    again, in the same order, and add nothing there.
    """

    def __init__(self) -> None:
        self.next_batch()

    def next_batch(self) -> None:
        """The rows that come are new."""
        self._attempts: list[tuple[int, int, Counter[str]]] = []
        self._before, self._done, self._seen = Counter(), Counter(), Counter()

    def begin(self, first: int, end: int) -> None:
        """A pass over rows `first` … `end` - 1 begins: all, or a part of those of a pass that broke off."""
        over_these = (done for start, stop, done in reversed(self._attempts) if start <= first and end <= stop)
        self._before = next(over_these, Counter())
        self._done, self._seen = Counter(self._before), Counter()
        self._attempts.append((first, end, self._done))

    def wants(self, key: str) -> bool:
        """Whether this pass is to add to the sum `key`; asked once for each time that its layer is reached."""
        self._seen[key] += 1
        return self._seen[key] > self._before[key]

    @contextmanager
    def adding(self, key: str) -> Iterator[None]:
        """Around the addition itself, which cannot be done by halves."""
        with indivisible(f"the statistics of {key}"):
            yield
        self._done[key] = self._seen[key]
