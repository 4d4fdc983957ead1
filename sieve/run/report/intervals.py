"""Scores as a report has them: means with their 95 % intervals, by measure and split."""

from collections.abc import Mapping

from sieve.evaluation.confidence import Interval, bootstrap, paired
from sieve.evaluation.scoring import Scores

MEASURES = {"accuracy": "score", "loglik": "loglik"}
"""Measure of a report → field of `Scores`."""

Values = dict[str, dict[str, dict[str, float | int]]]
"""Measure → split → "value", "low", "high", "n"."""


def intervals(scores: Mapping[str, Scores]) -> Values:
    """What was measured on each split."""
    return {
        measure: {split: _values(bootstrap(getattr(one, field))) for split, one in scores.items()}
        for measure, field in MEASURES.items()
    }


def differences(
    scores: Mapping[str, Scores], references: Mapping[str, Scores], same_tokens: Mapping[str, Scores] | None = None
) -> Values:
    """`scores` less `references`, example by example, on each split of `scores`.

    same_tokens: like `references`, over the tokens of `scores`: likelihoods are compared with these; None: with
        `references`.
    """
    compared = {"accuracy": references, "loglik": references if same_tokens is None else same_tokens}
    return {
        measure: {
            split: _values(paired(getattr(one, field), getattr(compared[measure][split], field)))
            for split, one in scores.items()
        }
        for measure, field in MEASURES.items()
    }


def _values(interval: Interval) -> dict[str, float | int]:
    return {"value": interval.value, "low": interval.low, "high": interval.high, "n": interval.n}
