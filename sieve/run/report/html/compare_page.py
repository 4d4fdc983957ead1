"""`sieve compare`: several runs on one page."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from sieve.run.report.html.chart import WIDTH, axes, dot, drawing, figure, label, line, scale_over, spread
from sieve.run.report.html.kept import kept_figure
from sieve.run.report.html.markup import MISSING, Html, amount, interval, leaves, number, percent, score, table, tag
from sieve.run.report.html.page import page, section

GENERATOR = "sieve compare"
# Height of the chart.
_TALL = 320


@dataclass(frozen=True)
class Run:
    """A finished run: the name that it has here, its report and its recipe."""

    name: str
    report: Mapping[str, Any]
    recipe: Mapping[str, Any]

    @property
    def removed(self) -> float:
        return self.report["parameters"]["prunable_removed"]

    def accuracy(self, which: str = "pruned") -> Mapping[str, Any]:
        """Accuracy on the test split; empty if it was not measured."""
        return self.report["accuracy"][which].get("test") or {}


def compare_page(runs: Sequence[Run]) -> str:
    """One page of all runs, task by task."""
    title = f"{len(runs)} pruned models" if len(runs) > 1 else "One pruned model"
    parts: list[Html | None] = []
    for task, some in by_task(runs).items():
        parts += [
            tag("h1", f"{title} for {task}" if len(by_task(runs)) == 1 else task),
            tag("p", compared(some), class_="verdict"),
            *(tag("p", note, class_="note") for note in differences_of_data(some)),
            section("Numbers", table(HEAD, map(numbers, some))),
            section("Accuracy against size", _chart(some)),
            section("What they were asked", _recipes(some)),
            *(section(f"What was kept: {run.name}", kept_figure(run.report)) for run in some),
        ]
    return page(title, GENERATOR, *parts)


HEAD = ("run", "removed", "of all", "weights", "pruned", "pruned − dense", "dense", "search", "time")


def numbers(run: Run) -> tuple[str, ...]:
    """A row of the table under `HEAD`: sizes, accuracies on the test split with intervals, cost."""
    report = run.report
    return (
        run.name,
        percent(run.removed),
        percent(report["parameters"]["model_removed"]),
        amount(report["bytes"]["pruned"], "B"),
        interval(run.accuracy() or None),
        interval(report["difference"]["accuracy"].get("test"), "+"),
        score(run.accuracy("dense").get("value")),
        str(report["search"].get("search")),
        f"{sum(filter(None, map(number, report['seconds'].values()))):,.0f} s",
    )


def by_task(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Task → its runs, the smallest model first."""
    ordered = sorted(runs, key=lambda run: (str(run.report["task"]), -run.removed))
    return {task: list(some) for task, some in groupby(ordered, key=lambda run: str(run.report["task"]))}


def compared(runs: Sequence[Run]) -> str:
    """A sentence that names the smallest and the most accurate run."""
    smallest = runs[0]
    text = f"{smallest.name} is the smallest: {percent(smallest.removed)} removed"
    known = [run for run in runs if number(run.accuracy().get("value")) is not None]
    if not known:
        return f"{text}."
    best = max(known, key=lambda run: run.accuracy()["value"])
    text += f", test accuracy {score(smallest.accuracy().get('value'))}"
    if best is smallest:
        return f"{text}, and no other is more accurate." if len(runs) > 1 else f"{text}."
    text += f". {best.name} is the most accurate: {score(best.accuracy()['value'])} at {percent(best.removed)} removed."
    if _overlap(best, smallest):
        text += " Their intervals overlap: on this test split they cannot be told apart for sure."
    return text


def differences_of_data(runs: Sequence[Run]) -> list[str]:
    """Reasons, if any, why the runs' numbers should not be compared."""
    tests = {str((run.report.get("data") or {}).get("test")) for run in runs}
    models = {str(run.report["model"]) for run in runs}
    notes = []
    if len(tests) > 1:
        notes.append("The test splits are not the same examples: accuracies of different runs are not comparable.")
    if len(models) > 1:
        notes.append("The runs began from different models: their removed fractions are not comparable.")
    return notes


def _overlap(one: Run, two: Run) -> bool:
    bounds = [number(run.accuracy().get(key)) for run in (one, two) for key in ("low", "high")]
    if None in bounds:
        return False
    return bounds[0] <= bounds[3] and bounds[2] <= bounds[1]


def _chart(runs: Sequence[Run]) -> Html | None:
    """Test accuracy against size, each run named at its mark; thin lines are the fronts of their searches."""
    # Only runs with a test accuracy and its interval can be drawn.
    known = [
        run for run in runs if all(number(run.accuracy().get(key)) is not None for key in ("value", "low", "high"))
    ]
    if not known:
        return None
    dense = number(known[0].accuracy("dense").get("value"))
    heights = [run.accuracy()[key] for run in known for key in ("low", "high")] + ([] if dense is None else [dense])
    # Draw the axes, with room for every interval and for the dense model.
    x = scale_over([0, *(run.removed for run in known)], 44, WIDTH - 10, 0.08)
    y = scale_over(heights, _TALL, 34)
    parts = axes(
        x, y, _TALL, "removed of the prunable parameters", "test accuracy", lambda value: percent(value, 0),
        lambda value: f"{value:.2f}",
    )  # fmt: skip
    if dense is not None:
        parts += [
            line(x.start, y(dense), x.end, y(dense), "rule"),
            label(x.start + 4, y(dense) - 5, f"dense: {dense:.3f}"),
        ]
    # Draw each run; names are moved apart, and those on the right half are written to the left.
    labels = []
    named = spread([y(run.accuracy()["value"]) for run in known], 15)
    for run, height in zip(known, named, strict=True):
        at, value = x(run.removed), run.accuracy()
        side = "end" if at > WIDTH / 2 else ""
        parts.append(line(at, y(value["low"]), at, y(value["high"]), "whisker"))
        parts.append(dot(at, y(value["value"]), "fill", 5, f"{run.name}: {interval(value)}"))
        labels.append(label(at + (-9 if side else 9), height + 4, run.name[:40], side))
    # Draw names last, on top of all lines.
    parts += labels
    return figure(drawing("Test accuracy against size", _TALL + 40, *parts), "Vertical lines are 95 % intervals.")


def _recipes(runs: Sequence[Run]) -> Html | None:
    """A table of the options in which the recipes differ."""
    recipes = [dict(leaves(run.recipe)) for run in runs]
    names = list(dict.fromkeys(name for recipe in recipes for name in recipe))
    differ = [name for name in names if len({str(recipe.get(name)) for recipe in recipes}) > 1]
    if not differ:
        return None
    rows = [(name, *(_value(recipe.get(name)) for recipe in recipes)) for name in differ]
    return table(("option", *(run.name for run in runs)), rows, "Options that are not the same for all.")


def _value(value: Any) -> str:
    return MISSING if value is None else str(value)
