"""The time of a run, divided among its parts: unused time goes to the parts after it."""

import time
from collections.abc import Callable, Sequence


class Budget:
    def __init__(self, seconds: float, weights: Sequence[float], clock: Callable[[], float] = time.monotonic):
        self._clock, self._deadline = clock, clock() + seconds
        self._weights = list(weights)

    def next(self) -> float:
        """Seconds for the next part: a portion of the remaining time, in proportion to its weight."""
        share = self._weights[0] / sum(self._weights)
        del self._weights[0]
        return max(self._deadline - self._clock(), 0) * share
