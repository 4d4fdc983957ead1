"""Compare two pieces of work on a noisy machine: in one run, in turns, by the median of their ratios."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Comparison:
    """Median seconds of `ours` and `theirs`, and the median over rounds of ours / theirs."""

    ours: float
    theirs: float
    ratio: float

    def __str__(self) -> str:
        return f"{1e3 * self.ours:.2f} ms against {1e3 * self.theirs:.2f} ms: {self.ratio:.3f} ×"


def compare(ours: Callable[[], object], theirs: Callable[[], object], rounds: int = 15) -> Comparison:
    """Run both in turn, `rounds` times after one warm-up round; the order alternates."""
    times: dict[Callable[[], object], list[float]] = {ours: [], theirs: []}
    for turn in range(rounds + 1):
        for work in (ours, theirs) if turn % 2 else (theirs, ours):
            started = time.perf_counter()
            work()
            if turn:
                times[work].append(time.perf_counter() - started)
    ratios = [a / b for a, b in zip(times[ours], times[theirs], strict=True)]
    return Comparison(statistics.median(times[ours]), statistics.median(times[theirs]), statistics.median(ratios))
