"""A run in one sentence: how much smaller, how accurate, what needs no model, how much faster."""

from collections.abc import Mapping
from typing import Any

# Scores without a language model, by their key in a report's "accuracy".
_CONTROLS = {"chance": "guessing", "majority": "the most frequent answer", "ngrams": "an n-gram classifier"}


def sentence(report: Mapping[str, Any]) -> str:
    """The sentence; parts that the report lacks, as older ones do, are left out."""
    parameters, accuracy = report["parameters"], report["accuracy"]
    parts = [
        f"{parameters['model_removed']:.1%} of the model is gone, {parameters['prunable_removed']:.1%} of what can be "
        "pruned"
    ]
    dense, pruned = (accuracy[which].get("test") for which in ("dense", "pruned"))
    if dense and pruned:
        levels = {name: (accuracy.get(key) or {}).get("test") for key, name in _CONTROLS.items()}
        found = {name: level for name, level in levels.items() if level is not None}
        control = max(found, key=found.get, default=None)
        beside = f" (without a model, {control} gets {found[control]:.3f})" if control else ""
        parts.append(f"test accuracy is {pruned['value']:.3f} where the dense model's is {dense['value']:.3f}{beside}")
    seconds = (report.get("speed") or {}).get("seconds")
    if seconds:
        share = seconds["pruned"]["decode"] / seconds["dense"]["decode"]
        parts.append(f"here a token takes {share:.2f} of the dense model's time")
    return f"In short: {'; '.join(parts)}."
