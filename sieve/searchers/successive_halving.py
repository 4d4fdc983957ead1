"""Successive halving over examples: a candidate leaves when it cannot win (Jamieson & Talwalkar 2016, with bounds).

After each rung of the examples a candidate's mean over *all* of them is estimated from those it has seen, as its
difference to a candidate whose mean is known: how hard the examples are cancels, and of several known candidates the
one that differs least tells most. Candidates that stay to the end are compared on every example.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from sieve.compression.plan import Plan
from sieve.evaluation.scoring import Scores, concatenated
from sieve.searchers.engine.engine import Engine

Z = 1.0  # one-sided 84 %: a candidate that is lost by mistake is one of hundreds, and seldom the best of them


@dataclass(frozen=True)
class Estimate:
    """A mean over all examples, known from some: between `low` and `high` with 68 % confidence (z = 1)."""

    mean: float
    low: float
    high: float


def estimate(seen: np.ndarray, known: Sequence[np.ndarray], z: float = Z) -> Estimate:
    """The mean of N values of which the first n are `seen`, from K known rows [N] of like values.

    Sampling without replacement: the error of the mean of n of N differences is s √((1 - n/N) / n). Where all
    differences so far are equal, one in n is taken to be as large as the known values' own spread.
    """
    n = len(seen)
    best = Estimate(float(seen.mean()), -math.inf, math.inf)
    for row in known:
        difference = seen - row[:n]
        variance = difference.var(ddof=1) if n > 1 else 0.0
        variance = variance or row.var() / n
        error = z * math.sqrt(variance * max(1 - n / len(row), 0) / n)
        if 2 * error < best.high - best.low:
            mean = float(row.mean() + difference.mean())
            best = Estimate(mean, mean - error, mean + error)
    return best


def successive_halving(
    engine: Engine,
    plans: Sequence[Plan],
    value: Callable[[Scores], np.ndarray],
    utility: Callable[[int, float], float],
    known: Sequence[Scores],
    keep: int | None = None,
    racing: bool = True,
) -> tuple[dict[int, Scores], list[Scores]]:
    """Full scores of the plans that stayed to the end, by their index; and all plans' scores on the first rung.

    Args:
        value: what of the scores is averaged, per example [N].
        utility: (index, mean value) → how good that would be; grows with the mean. 0 or less cannot win.
        known: full scores to compare with; without any, no plan leaves.
        keep: after each rung, half may leave, but not the best `keep`: those of the worse half who would not reach the
            pessimistic utility of the last one kept even at their optimistic own. None: only the hopeless leave.
    """
    alive = list(range(len(plans)))
    seen: dict[int, list[Scores]] = {index: [] for index in alive}
    rows = [value(scores) for scores in known]
    for rung in range(len(engine)):
        for index, scores in zip(alive, engine.scores([plans[index] for index in alive], rung), strict=True):
            seen[index].append(scores)
        if not racing or rung == len(engine) - 1 or not rows:
            continue

        # Those leave that cannot win even at the optimistic end of what their mean may be.
        bounds = {index: estimate(value(concatenated(seen[index])), rows) for index in alive}
        leaving = {index for index in alive if utility(index, bounds[index].high) <= 0}
        # Of the worse half those leave that would not reach the pessimistic end of the best `keep`.
        if keep is not None:
            order = sorted(alive, key=lambda index: (-utility(index, bounds[index].mean), index))
            first = max(keep, (len(order) + 1) // 2)
            if first < len(order):
                bar = min(utility(index, bounds[index].low) for index in order[:keep])
                leaving |= {index for index in order[first:] if utility(index, bounds[index].high) < bar}
        alive = [index for index in alive if index not in leaving]
    return {index: concatenated(seen[index]) for index in alive}, [scores[0] for scores in seen.values()]
