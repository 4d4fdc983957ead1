"""Sizes and accuracies: figures, and the same numbers in tables."""

from collections.abc import Mapping
from typing import Any

from sieve.run.report.html.chart import (
    WIDTH,
    Scale,
    axes,
    dot,
    drawing,
    figure,
    label,
    line,
    rectangle,
    scale_over,
)  # fmt: skip
from sieve.run.report.html.markup import Html, amount, interval, number, percent, table
from sieve.run.report.html.verdict import CONTROLS

_ROW = 22


def size_parts(report: Mapping[str, Any]) -> list[Html]:
    """The remaining parameters and bytes, as bars and in a table."""
    parameters, sizes = report["parameters"], report["bytes"]
    every = (
        ("prunable parameters", parameters["prunable"], ""),
        ("all parameters", parameters["model"], ""),
        ("weights", sizes, "B"),
    )
    known = [(name, both, unit, both["pruned"] / both["dense"]) for name, both, unit in every if both["dense"]]
    shown = [(name, left, percent(left)) for name, _, _, left in known]
    rows = [
        (name, amount(both["dense"], unit), amount(both["pruned"], unit), percent(1 - left))
        for name, both, unit, left in known
    ]
    chart = bars(shown, "What is left of the model", "Left of the dense model.")
    return [chart, table(("", "dense", "pruned", "removed"), rows)]


def bars(rows: list[tuple[str, float, str]], title: str, caption: str, most: float = 1.0) -> Html:
    """Horizontal bars with a name above and the number at the end; `most` is the value of a full bar."""
    parts = []
    for place, (name, value, text) in enumerate(rows):
        top = place * 38
        long = (WIDTH - 90) * min(max(value / most if most else 0.0, 0), 1)
        parts += [
            label(0, top + 13, name, "soft"),
            rectangle(0, top + 18, WIDTH - 90, 13, "cell"),
            rectangle(0, top + 18, long, 13, "fill"),
            label(WIDTH, top + 29, text, "end"),
        ]
    return figure(drawing(title, len(rows) * 38, *parts), caption)


def accuracy_parts(report: Mapping[str, Any]) -> list[Html]:
    accuracy, difference = report["accuracy"], report["difference"]["accuracy"]
    rows = [
        (split, f"{pruned.get('n', 0):,}", interval(accuracy["dense"].get(split)), interval(pruned),
         interval(difference.get(split), "+"))
        for split, pruned in accuracy["pruned"].items()
    ]  # fmt: skip
    controls = [
        (name, *(percent((accuracy.get(key) or {}).get(split)) for split in accuracy["pruned"]))
        for key, name in CONTROLS.items()
        if any(value is not None for value in (accuracy.get(key) or {}).values())
    ]
    parts = [
        _accuracy_figure(report),
        table(("split", "examples", "dense", "pruned", "difference, paired"), rows),
    ]
    if controls:
        parts.append(table(("without a language model", *accuracy["pruned"]), controls))
    return parts


def _accuracy_figure(report: Mapping[str, Any]) -> Html:
    accuracy = report["accuracy"]
    splits = list(accuracy["pruned"])
    # Scores without a language model: a dashed line for each, with its name in a row above the splits.
    levels = [
        (name, level)
        for key, name in CONTROLS.items()
        if (level := number((accuracy.get(key) or {}).get("test"))) is not None
    ]
    values = [level for _, level in levels]
    for which in ("dense", "pruned"):
        for split in splits:
            values += filter(None, map(number, (accuracy[which].get(split) or {}).values()))
    # Fit the scale to the accuracies: an interval also holds its number of examples, which is dropped here.
    values = [value for value in values if value <= 1]
    top = 16 * len(levels) + 14
    bottom = top + len(splits) * (2 * _ROW + 12)
    x = scale_over(values, 150, WIDTH - 12)
    parts = axes(x, None, bottom, "accuracy", x_text=lambda value: f"{value:.2f}")
    for place, (name, level) in enumerate(levels):
        side = "end" if x(level) > WIDTH / 2 else ""
        parts += [
            line(x(level), 16 * place + 6, x(level), bottom, "rule"),
            label(x(level) + (-5 if side else 5), 16 * place + 14, f"{name} (test)", f"soft {side}".strip()),
        ]
    # For each split a line for the dense and one for the pruned model, and the limit of the tolerance on validation.
    for place, split in enumerate(splits):
        row = top + place * (2 * _ROW + 12) + 16
        parts.append(label(0, row + _ROW / 2 + 4, split))
        for lower, which in enumerate(("dense", "pruned")):
            parts += _measured(x, row + lower * _ROW, which, accuracy[which].get(split))
        if split == "validation" and (floor := _floor(report)) is not None:
            parts += [line(x(floor), row - 8, x(floor), row + _ROW + 8, "rule limit")]
            parts += [label(x(floor) - 4, row + 4, "tolerance", "end soft")]
    caption = "Hollow: dense; filled: pruned; lines are 95 % intervals. Dashed: what needs no language model."
    return figure(drawing("Accuracy of the dense and the pruned model", bottom + 40, *parts), caption)


def _measured(x: Scale, y: float, which: str, value: Mapping[str, Any] | None) -> list[Html]:
    mean, low, high = (number((value or {}).get(key)) for key in ("value", "low", "high"))
    if mean is None or low is None or high is None:
        return []
    kind = "hollow" if which == "dense" else "fill"
    return [
        label(142, y + 4, which, "end soft"),
        line(x(low), y, x(high), y, "whisker"),
        dot(x(mean), y, kind, 5, f"{which}: {interval(value)}"),
    ]


def _floor(report: Mapping[str, Any]) -> float | None:
    """The least accuracy on validation that the tolerance allows."""
    dense, tolerance = report["accuracy"]["dense"].get("validation"), number(report.get("tolerance"))
    return None if not dense or tolerance is None else (1 - tolerance) * dense["value"]
