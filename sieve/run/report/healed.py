"""Turning the report of a pruned model into that of the healed model."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sieve.evaluation.scoring import Scores
from sieve.run.report.intervals import differences, intervals
from sieve.run.report.rescored import rescored


@dataclass(frozen=True)
class Controls:
    """Baselines in the report of a healed model.

    ngrams_taught: split → score of an n-gram classifier that was trained on the dense model's answers, without labels;
        empty if no model answered.
    tuned_dense: split → scores of the dense model tuned on the same labels; None if no labels were used.
    """

    ngrams_taught: Mapping[str, float]
    tuned_dense: Mapping[str, Scores] | None = None


def healed_report(
    report: Mapping[str, Any],
    healing: Mapping[str, Any],
    dense: Mapping[str, Scores],
    same_tokens: Mapping[str, Scores],
    healed: Mapping[str, Scores],
    controls: Controls,
    seconds: float,
) -> dict[str, Any]:
    """The report with the healed model's numbers as those of the pruned one; "healing" keeps the earlier ones.

    Args:
        report: of the model before.
        healing: what was done (`Healing.report`).
        dense, healed: split → scores, on the same examples.
        same_tokens: like `dense`, over the healed model's tokens: likelihoods are compared with these scores.
        seconds: of the whole stage, teaching and evaluation included.
    """
    made, before = rescored(report, healed, dense, same_tokens)
    made["healing"] = {**healing, "before": before, "ngrams_taught": dict(controls.ngrams_taught)}
    if controls.tuned_dense is not None:
        tuned = {split: controls.tuned_dense[split] for split in healed}
        made["healing"]["tuned_dense"] = intervals(tuned) | {"difference": differences(healed, tuned)}
    made["seconds"] = report["seconds"] | {"heal": round(report["seconds"].get("heal", 0.0) + seconds, 3)}
    return made
