"""Turning the report of the first round into that of the last round that held the tolerance."""

from collections.abc import Mapping, Sequence
from typing import Any


def rounds_report(report: Mapping[str, Any], rounds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The report with the sizes of the last round that held; "healing" is that round's, "rounds" lists all.

    Later rounds have accuracies and likelihoods before healing only on the splits that decide: the test split decides
    nothing, so it is not scored in between.
    """
    # Without a round that held, the report stays that of the first round.
    last = [one for one in rounds if one["held"]][-1:] or [rounds[0]]
    chosen = last[0]
    parameters, sizes = report["parameters"], report["bytes"]
    dense = parameters["model"]["dense"]
    made = dict(report)
    if chosen["round"] > 1:
        # The chosen round's sizes replace the first round's, as do its scores before healing.
        made |= {
            "parameters": parameters
            | {
                "prunable_removed": chosen["prunable_removed"],
                "model_removed": 1 - chosen["parameters"] / dense,
                "prunable": parameters["prunable"]
                | {"pruned": round(chosen["kept_share"] * parameters["prunable"]["dense"])},
                "model": parameters["model"] | {"pruned": chosen["parameters"]},
            },
            "bytes": sizes | {"pruned": chosen["bytes"]},
            "kept": chosen["kept"],
        }
        for measure in ("accuracy", "loglik"):
            made[measure] = report[measure] | {"pruned": chosen["before"][measure]}
    # Keep a short record of each round.
    told = ("round", "prunable_removed", "held", "before", "after", "seconds")
    made["healing"] = chosen["healing"]
    made["rounds"] = [
        {name: one[name] for name in told if name in one} | {"steps": one["healing"]["steps"]} for one in rounds
    ]
    return made
