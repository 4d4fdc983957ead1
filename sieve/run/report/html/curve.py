"""How a search went: accuracy against size, and progress against cost."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from sieve.run.report.html.chart import (
    WIDTH,
    axes,
    dot,
    drawing,
    figure,
    label,
    line,
    rectangle,
    scale_over,
    steps,
)
from sieve.run.report.html.markup import Html, amount, interval, number, percent, table, tag
from sieve.run.report.html.scores import bars
from sieve.searchers.algorithms.base import SEARCHERS

_SAVED = {
    "prefix": "shared beginnings of prompts run once",
    "layers": "blocks that candidates share run once",
    "racing": "candidates dropped early",
    "logits": "few logits",
    "padding": "sorted by length",
    "surrogate": "screened by predicted loss",
    "journal": "known from the journal",
}
_COUNTED = ("prefix", "layers", "racing")
"""Shortcuts that the ratio of plain to spent work includes; the others are not counted in it."""
_UNIFORM = [name for name, searcher in SEARCHERS.items() if not searcher.per_matrix]
"""Searchers that vary all matrices together."""


class Tried(NamedTuple):
    """A candidate that was scored on the whole fitness split.

    cost: layer-tokens that the search had spent by then, None if unknown. uniform: one kept fraction for all matrices.
    """

    removed: float
    accuracy: float
    cost: float | None
    uniform: bool


def tried(candidates: Any) -> list[Tried]:
    """The candidates of a report, without those that have no numbers."""
    found = []
    for one in candidates if isinstance(candidates, list) else []:
        removed, accuracy = number(one.get("prunable_removed")), number(one.get("accuracy"))
        if removed is not None and accuracy is not None:
            uniform = one.get("uniform") is True
            found.append(Tried(removed, accuracy, number(one.get("layer_tokens")), uniform))
    return found


def front(candidates: Sequence[Tried]) -> list[Tried]:
    """The Pareto front, from the largest model to the smallest: no candidate that removes as much is more accurate."""
    best: list[Tried] = []
    for one in sorted(candidates, key=lambda one: (-one.removed, -one.accuracy)):
        if not best or one.accuracy > best[-1].accuracy:
            best.append(one)
    return best[::-1]


def curve_figure(report: Mapping[str, Any], recipe: Mapping[str, Any]) -> Html | None:
    """Accuracy on the fitness split against size: candidates, their front, the tolerance, the chosen model."""
    # Without candidates, or without the dense and the chosen model's accuracy, there is nothing to draw.
    candidates = tried(report["search"].get("evaluated"))
    refits = tried((report.get("refit") or {}).get("evaluated"))
    dense, pruned = (report["accuracy"][which].get("fitness") or {} for which in ("dense", "pruned"))
    level, chosen = number(dense.get("value")), number(pruned.get("value"))
    if not candidates or level is None or chosen is None:
        return None
    floor = _floor(report, recipe, level)
    is_uniform = str(report["search"].get("search")) in _UNIFORM
    removed = report["parameters"]["prunable_removed"]
    # The scales hold everything that is drawn below.
    x = scale_over([0, removed, *(one.removed for one in candidates + refits)], 44, WIDTH - 10, 0.04)
    heights = [level, chosen, *(one.accuracy for one in candidates + refits)]
    heights += [] if floor is None else [floor]
    y = scale_over(heights, 300, 34)
    parts = axes(x, y, 300, "removed of the prunable parameters", "accuracy", _whole, _two_digits)
    if floor is not None:
        parts += [line(x.start, y(floor), x.end, y(floor), "rule limit")]
        parts += [label(x.start + 4, y(floor) - 5, f"tolerance: {floor:.3f}")]
    # Draw candidates first, so that lines and the chosen model lie on top of them.
    parts += [dot(x(one.removed), y(one.accuracy), "cloud", 3.5, _hint(one)) for one in candidates]
    for one in refits:
        parts.append(rectangle(x(one.removed) - 3.5, y(one.accuracy) - 3.5, 7, 7, "cloud"))
    # Draw the uniform curve and the front; for a uniform search the two would be one line.
    uniform = [(x(0), y(level))]
    uniform += [(x(one.removed), y(one.accuracy)) for one in sorted(candidates) if one.uniform or is_uniform]
    if len(uniform) > 1:
        parts.append(tag("path", d="M" + "L".join(f"{px:g} {py:g}" for px, py in uniform), class_="dotted"))
    best = front(candidates)
    if len(best) > 1 and not is_uniform:
        parts.append(steps([(x(one.removed), y(one.accuracy)) for one in best], "V", "H"))
    parts += [dot(x(0), y(level), "hollow", 5, "dense"), label(x(0) + 9, y(level) - 7, "dense")]
    # Draw the chosen model with its interval, its name below so that it covers no mark.
    low, high = number(pruned.get("low")), number(pruned.get("high"))
    if low is not None and high is not None:
        parts.append(line(x(removed), y(low), x(removed), y(high), "whisker"))
    under = y(chosen if low is None else low) + 16
    parts += [
        rectangle(x(removed) - 5, y(chosen) - 5, 10, 10, "other"),
        label(x(removed), min(under, 294), "chosen", "middle"),
    ]
    more = " Dotted: the uniform curve, one kept fraction for all matrices." if len(uniform) > 1 else ""
    more += " Small squares: refitted plans." if refits else ""
    caption = (
        "On the fitness split. Circles: candidates that were scored on all of it; line: their front; filled square: "
        f"the model that was chosen, as it is stored, {interval(pruned)}.{more}"
    )
    return figure(drawing("Accuracy against size", 340, *parts), caption)


def progress_figure(report: Mapping[str, Any], recipe: Mapping[str, Any]) -> Html | None:
    """The best candidate so far against the cost of the search."""
    candidates = tried(report["search"].get("evaluated"))
    level = number((report["accuracy"]["dense"].get("fitness") or {}).get("value"))
    if len(candidates) < 2 or level is None:
        return None
    # Without the cost of each candidate, count candidates instead.
    known = all(one.cost is not None for one in candidates) and any(one.cost for one in candidates)
    places = [one.cost if known else float(place) for place, one in enumerate(candidates, 1)]
    # With a tolerance the search looks for the smallest model, with a given size for the most accurate.
    asked = _asked(recipe)
    floor = _floor(report, recipe, level)

    def fits(one: Tried) -> bool:
        return one.accuracy >= floor - 1e-9 if asked is None else one.removed >= 1 - asked - 1e-9

    height = "removed" if asked is None else "accuracy"
    x = scale_over([0, *places], 44, WIDTH - 10, 0.03)
    y = scale_over([getattr(one, height) for one in candidates], 240, 34)
    x_name = "layer-tokens spent" if known else "candidates scored"
    parts = axes(x, y, 240, x_name, height, amount, _whole if asked is None else _two_digits)
    # Draw every candidate, and a line through the best of those that fit.
    best: list[tuple[float, float]] = []
    for place, one in zip(places, candidates, strict=True):
        value = getattr(one, height)
        parts.append(dot(x(place), y(value), "fill" if fits(one) else "cloud", 3.5, _hint(one)))
        if fits(one) and (not best or value > best[-1][1]):
            best.append((place, value))
    if best:
        parts.append(steps([(x(px), y(py)) for px, py in [*best, (x.high, best[-1][1])]]))
    meant = "within the tolerance" if asked is None else "as small as asked for"
    caption = f"Filled: {meant}; the line is the best of them so far. Hollow: the others."
    return figure(drawing("Search progress against cost", 280, *parts), caption)


def saved_parts(report: Mapping[str, Any]) -> list[Html]:
    """The work that each shortcut saved the search, and the sums."""
    search = report["search"]
    plain, spent = number(search.get("layer_tokens_plain")), number(search.get("layer_tokens_spent"))
    if not plain or not spent:
        return []
    saved = {
        name: value
        for name in _SAVED
        if (value := number((search.get("saved_by") or {}).get(name))) is not None and value > 0
    }
    most = max([plain, *(saved[name] for name in saved if name in _COUNTED)])
    shown = [("plain evaluation of the same candidates", plain, amount(plain)), ("spent", spent, amount(spent))]
    shown += [(_SAVED[name], saved[name], amount(saved[name])) for name in _COUNTED if name in saved]
    parts = [bars(shown, "Work of the search", "In layer-tokens: one token through one decoder block.", most)]
    others = [(_SAVED[name], amount(value)) for name, value in saved.items() if name not in _COUNTED]
    if others:
        parts.append(table(("would have come on top without", "layer-tokens"), others))
    return parts


def _floor(report: Mapping[str, Any], recipe: Mapping[str, Any], dense: float) -> float | None:
    """The least accuracy that the tolerance allows; None if a size was asked for."""
    tolerance = number(report.get("tolerance"))
    return None if _asked(recipe) is not None or tolerance is None else (1 - tolerance) * dense


def _asked(recipe: Mapping[str, Any]) -> float | None:
    """The kept fraction that was asked for instead of a tolerance."""
    return number(recipe.get("kept"))


def _hint(one: Tried) -> str:
    return f"{percent(one.removed)} removed, accuracy {one.accuracy:.3f}"


def _whole(value: float) -> str:
    return percent(value, 0)


def _two_digits(value: float) -> str:
    return f"{value:.2f}"
