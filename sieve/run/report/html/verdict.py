"""A run in a few sentences."""

from collections.abc import Mapping
from typing import Any

from sieve.run.report.html.markup import amount, number, percent, points, score

CONTROLS = {"chance": "guessing", "majority": "the most frequent answer", "ngrams": "a classifier of letters"}
"""Key of a score without a language model → its name in sentences."""


def verdict(report: Mapping[str, Any], recipe: Mapping[str, Any]) -> str:
    """What was removed, what it cost on the test split, and whether the tolerance held on validation."""
    parameters, sizes = report["parameters"], report["bytes"]
    parts = [
        f"{percent(parameters['prunable_removed'])} of the prunable parameters are gone, "
        f"{percent(parameters['model_removed'])} of all: {amount(sizes['dense'], 'B')} became "
        f"{amount(sizes['pruned'], 'B')}."
    ]
    accuracy = report["accuracy"]
    dense, pruned = accuracy["dense"].get("test"), accuracy["pruned"].get("test")
    if dense and pruned:
        parts.append(
            f"On the test split, which was used for no choice, accuracy is {score(pruned['value'])} where the dense "
            f"model has {score(dense['value'])}: {_difference(report['difference']['accuracy']['test'])}."
        )
    if (held := _tolerance(report, recipe)) is not None:
        parts.append(held)
    return " ".join(parts)


def _difference(value: Mapping[str, Any]) -> str:
    low, high = number(value.get("low")), number(value.get("high"))
    mean = number(value.get("value")) or 0.0
    text = f"{points(mean)} {'lower' if mean < 0 else 'higher'}" if mean else "no difference"
    if low is None or high is None:
        return text
    between = f"95 % interval {100 * low:+.1f} to {100 * high:+.1f} points".replace("-", "−")
    unsure = f", which {value.get('n')} examples cannot tell from none" if low <= 0 <= high else ""
    return f"{text}{unsure} ({between})"


def _tolerance(report: Mapping[str, Any], recipe: Mapping[str, Any]) -> str | None:
    if number(recipe.get("kept")) is not None:
        what = recipe.get("objective") or "parameters"
        return f"The goal was the best model with {percent(recipe['kept'], 0)} of the {what} of the prunable matrices."
    accuracy, tolerance = report["accuracy"], number(report.get("tolerance"))
    dense, pruned = (accuracy[which].get("validation") for which in ("dense", "pruned"))
    if not (dense and pruned) or tolerance is None:
        return None
    lost, allowed = dense["value"] - pruned["value"], tolerance * dense["value"]
    if lost <= 0:
        held = "it lost nothing"
    elif lost <= allowed + 1e-9:
        held = f"it lost {100 * lost:.1f} of the {points(allowed)} allowed"
    else:
        held = f"it lost {points(lost)}, more than the {points(allowed)} allowed"
    return f"On the validation split, where the tolerance of {percent(tolerance)} had to hold, {held}."
