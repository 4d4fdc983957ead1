"""How far inside the tolerance a candidate must be, so that its choice among many costs no more than the tolerance.

The smallest candidate that passes on some hundred questions is chosen for luck, too: on new data it loses more. How
much more follows from the search's own candidates: part the fitness questions at random in three, take the first part
for a fitness split and the second for a validation split, choose on them as the search does, and look up on the third
what was chosen. The margin is the smallest at which that loses no more than the tolerance, on average over many
partings; it shrinks with the standard error from a third of the questions to all of them. It is fixed before the
validation split is read.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from sieve.evaluation.scoring import Scores
from sieve.searchers.problem import Candidate, SearchProblem

_DRAWS, _PARTS = 400, 3
_STEPS = 40  # of the margin, up to the whole loss that is allowed


def selection_margin(problem: SearchProblem, validation: int) -> float:
    """The margin, in units of the score, of a search by a tolerance whose candidates are all known.

    Args: validation: number of questions of that split.
    """
    candidates = sorted(problem.evaluated, key=lambda one: problem.size(one.plan))
    if not candidates or problem.tolerance == 0:
        return 0.0
    # A candidate passes where the mean of its surplus is at least the margin.
    surplus = np.array([_surplus(one.scores, problem.dense, problem.tolerance) for one in candidates])
    allowed = problem.tolerance * problem.dense.accuracy
    size = surplus.shape[1] // _PARTS
    if size == 0:
        return 0.0
    fitness, confirmed, truth = _means_of_parts(surplus, size, np.random.default_rng(problem.seed))
    lowest = np.minimum(fitness, confirmed)
    whole = 2 / (1 / surplus.shape[1] + 1 / validation)
    for step in range(_STEPS + 1):
        margin = allowed * step / _STEPS
        if _expected(lowest, truth, allowed, margin) >= 0:
            break
    return float(margin * min(1.0, math.sqrt(size / whole)))


def _surplus(scores: Scores, dense: Scores, tolerance: float) -> np.ndarray:
    return np.asarray(scores.score, dtype=np.float64) - (1 - tolerance) * np.asarray(dense.score, dtype=np.float64)


def _means_of_parts(surplus: np.ndarray, size: int, generator: np.random.Generator) -> list[np.ndarray]:
    """Means of the candidates' surplus [candidates, n] on the parts of each draw: for each part [draws, candidates]."""
    order = generator.permuted(np.tile(np.arange(surplus.shape[1]), (_DRAWS, 1)), axis=1)
    means = []
    for part in range(_PARTS):
        chosen = np.zeros((_DRAWS, surplus.shape[1]))
        np.put_along_axis(chosen, order[:, part * size : (part + 1) * size], 1.0, axis=1)
        means.append(chosen @ surplus.T / size)
    return means


def _expected(lowest: np.ndarray, truth: np.ndarray, allowed: float, margin: float) -> float:
    """Mean surplus, on the third part, of what is chosen: the first that passes on both others, or the dense model."""
    passes = lowest >= margin - 1e-12
    found = np.take_along_axis(truth, passes.argmax(axis=1)[:, None], axis=1)[:, 0]
    return float(np.where(passes.any(axis=1), found, allowed).mean())


def describe(candidates: Sequence[Candidate], margin: float, allowed: float) -> str:
    """For the log."""
    return (
        f"  margin for the choice among {len(candidates)} candidates: {margin:.4f} of a loss of {allowed:.4f} that is "
        "allowed"
    )
