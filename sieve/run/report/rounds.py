"""A report of a model that was pruned and healed once, made one of the model of its last round that held."""

from collections.abc import Mapping, Sequence
from typing import Any


def rounds_report(report: Mapping[str, Any], rounds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The report with the sizes of the last round that held; "healing" is that round's, "rounds" tells of all.

    Accuracies and likelihoods before healing are then of the splits that decide: test scores decide nothing, so there
    are none of a round in between.
    """
    last = [one for one in rounds if one["held"]][-1:] or [rounds[0]]
    chosen = last[0]
    parameters, sizes = report["parameters"], report["bytes"]
    dense = parameters["model"]["dense"]
    made = dict(report)
    if chosen["round"] > 1:
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
    told = ("round", "prunable_removed", "held", "before", "after", "seconds")
    made["healing"] = chosen["healing"]
    made["rounds"] = [
        {name: one[name] for name in told if name in one} | {"steps": one["healing"]["steps"]} for one in rounds
    ]
    return made
