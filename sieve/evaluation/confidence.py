"""The uncertainty of a measured mean: standard errors, bootstrap intervals, paired differences."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sieve.errors import InputError

# Number of indices drawn at a time; it bounds the memory of a bootstrap.
_CELLS = 4_000_000


@dataclass(frozen=True)
class Interval:
    """A mean of n values and where it would fall, between `low` and `high`, on other data of the same kind."""

    value: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True)
class Resolution:
    """Whether n examples are enough to measure a loss as small as the tolerance.

    accuracy: the dense model's mean score on n examples.
    standard_error: of that accuracy.
    tolerance: the absolute loss that is allowed, ε × accuracy.
    needed_n: the examples for which the tolerance is two standard errors; 0 where no number of them would do.
    """

    accuracy: float
    n: int
    standard_error: float
    tolerance: float
    needed_n: int

    @property
    def sufficient(self) -> bool:
        """Whether the tolerance is at least two standard errors."""
        return self.n >= self.needed_n > 0

    def __str__(self) -> str:
        text = (
            f"{self.n} examples tell an accuracy of {self.accuracy:.3f} to ±{2 * self.standard_error:.3f} "
            f"(two standard errors); the tolerance allows a loss of {self.tolerance:.3f}"
        )
        if self.sufficient:
            return text
        need = f"{self.needed_n:,} examples would do" if self.needed_n else "no number of examples tells a loss of 0"
        return f"{text}, less than that: {need}"


def standard_error(values: Sequence[float] | np.ndarray) -> float:
    """Standard error of the mean of values [n]: s / √n with the sample deviation s; infinite for a single value."""
    values = _checked(values)
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.inf


def bootstrap(
    values: Sequence[float] | np.ndarray, seed: int = 0, resamples: int = 2000, level: float = 0.95
) -> Interval:
    """The mean of values [n] with its percentile bootstrap interval (Efron 1979)."""
    values = _checked(values)
    generator = np.random.default_rng(seed)
    at_once = max(1, _CELLS // len(values))
    means = np.concatenate(
        [
            values[generator.integers(len(values), size=(min(at_once, resamples - done), len(values)))].mean(axis=1)
            for done in range(0, resamples, at_once)
        ]
    )
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(values.mean()), float(low), float(high), len(values))


def paired(
    values: Sequence[float] | np.ndarray,
    reference: Sequence[float] | np.ndarray,
    seed: int = 0,
    resamples: int = 2000,
    level: float = 0.95,
) -> Interval:
    """The mean of values - reference, which belong to the same examples in the same order, with its interval.

    Much narrower than the two single intervals would suggest: how hard an example is cancels.
    """
    return bootstrap(difference(values, reference), seed, resamples, level)


def difference(values: Sequence[float] | np.ndarray, reference: Sequence[float] | np.ndarray) -> np.ndarray:
    """values - reference [n], of the same examples in the same order; InputError where their numbers differ."""
    values, reference = _checked(values), _checked(reference)
    if len(values) != len(reference):
        raise InputError(f"paired scores must be of the same examples, got {len(values)} and {len(reference)}")
    return values - reference


def resolution(scores: Sequence[float] | np.ndarray, epsilon: float) -> Resolution:
    """Whether the dense model's scores [n] are enough to measure a loss of `epsilon` times their mean."""
    scores = _checked(scores)
    # Equal scores have no deviation; one more example that differs is then always possible.
    error = standard_error(scores) or 1 / (len(scores) + 1)
    accuracy = float(scores.mean())
    tolerance = epsilon * accuracy
    if tolerance <= 0:
        needed = 0
    elif len(scores) == 1:
        needed = 2
    else:
        # The square of a larger ratio may be no number.
        needed = max(2, math.ceil(min(2 * error / tolerance, 1e9) ** 2 * len(scores)))
    return Resolution(accuracy, len(scores), error, tolerance, needed)


def _checked(values: Sequence[float] | np.ndarray) -> np.ndarray:
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or not len(values):
        raise InputError(f"scores must be a list of at least one number, got an array of shape {values.shape}")
    return values
