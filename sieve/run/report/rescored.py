"""Updating a report whose pruned model was changed after the search."""

from collections.abc import Mapping
from typing import Any

from sieve.evaluation.scoring import Scores
from sieve.run.report.intervals import differences, intervals


def rescored(
    report: Mapping[str, Any], scores: Mapping[str, Scores], dense: Mapping[str, Scores], same_tokens: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The report with `scores` as those of the pruned model, and the numbers from before.

    Args:
        scores, dense: split → scores, on the same examples.
        same_tokens: like `dense`, over the pruned model's tokens: likelihoods are compared with these scores.
    """
    found = intervals(scores)
    before = {measure: report[measure]["pruned"] for measure in found}
    made = {**report, **{measure: report[measure] | {"pruned": values} for measure, values in found.items()}}
    made["difference"] = differences(scores, dense, same_tokens)
    return made, before


def quantised_report(
    report: Mapping[str, Any],
    kind: str,
    nbytes: int,
    scores: Mapping[str, Scores],
    dense: Mapping[str, Scores],
    same_tokens: Mapping[str, Any],
    seconds: float,
) -> dict[str, Any]:
    """The report of a model whose pairs were quantised; "quantization" keeps the earlier numbers.

    The number of parameters stays that of the plan: each takes fewer bits.
    """
    made, before = rescored(report, scores, dense, same_tokens)
    made["quantization"] = {"kind": kind, "before": {**before, "bytes": report["bytes"]["pruned"]}}
    made["bytes"] = report["bytes"] | {"pruned": nbytes}
    made["pivoted"] = False
    made["seconds"] = report["seconds"] | {"quantize": round(seconds, 3)}
    return made
