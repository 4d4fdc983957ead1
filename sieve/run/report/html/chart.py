"""The parts of a chart in inline SVG: scales, axes, marks. Marks differ in form, not only in colour."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from sieve.run.report.html.markup import Html, tag

WIDTH = 480
"""Width of every chart in its own units: about a phone's width, so that text stays readable there."""


@dataclass(frozen=True)
class Scale:
    """A linear map of values from `low` to `high` to places from `start` to `end`."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return round(self.start + min(max(share, 0), 1) * (self.end - self.start), 2)

    def ticks(self, number: int = 5) -> list[float]:
        """Round values, about as many as asked for."""
        span = self.high - self.low
        step = 10 ** math.floor(math.log10(span / number))
        step *= next((factor for factor in (1, 2, 5) if span / (step * factor) <= number), 10)
        first = math.ceil(self.low / step - 1e-9)
        return [round(place * step, 10) for place in range(first, math.floor(self.high / step + 1e-9) + 1)]


def scale_over(values: Sequence[float], start: float, end: float, margin: float = 0.06) -> Scale:
    """A scale over all values with a margin; one unit wide if the values are equal or missing."""
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    extra = margin * (high - low) or 0.5 * (abs(high) or 1) * margin
    return Scale(low - extra, high + extra, start, end)


def drawing(title: str, height: float, *parts: Html | None) -> Html:
    """A chart with its title for screen readers."""
    return tag(
        "svg", tag("title", title), *parts, viewBox=f"0 0 {WIDTH} {height:g}", role="img", aria_label=title,
        xmlns="http://www.w3.org/2000/svg",
    )  # fmt: skip


def figure(svg: Html, caption: str) -> Html:
    return tag("figure", svg, tag("figcaption", caption))


def line(x1: float, y1: float, x2: float, y2: float, kind: str = "axis") -> Html:
    return tag("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=kind)


def label(x: float, y: float, text: Any, kind: str = "") -> Html:
    return tag("text", text, x=x, y=y, class_=kind or None)


def rectangle(x: float, y: float, width: float, height: float, kind: str, *title: Html) -> Html:
    return tag(
        "rect", *title, x=round(x, 2), y=round(y, 2), width=round(width, 2), height=round(height, 2), class_=kind
    )


def dot(x: float, y: float, kind: str, radius: float = 4, hint: str | None = None) -> Html:
    return tag("circle", hint and tag("title", hint), cx=x, cy=y, r=radius, class_=kind)


def axes(
    x: Scale,
    y: Scale | None,
    bottom: float,
    x_name: str,
    y_name: str = "",
    x_text: Callable[[float], str] = str,
    y_text: Callable[[float], str] = str,
) -> list[Html]:
    """Ticks with their values, and the names at the axes' ends; without `y`, only the horizontal axis."""
    left = x.start
    parts = [line(left, bottom, x.end, bottom), label(x.end, bottom + 34, x_name, "end soft")]
    for value in x.ticks():
        parts += [line(x(value), bottom, x(value), bottom + 4)]
        parts += [label(x(value), bottom + 18, x_text(value), "middle soft")]
    if y is not None:
        parts.append(label(0, y.end - 12, y_name, "soft"))
        for value in y.ticks():
            parts += [line(left, y(value), x.end, y(value)), label(left - 6, y(value) + 4, y_text(value), "end soft")]
    return parts


def steps(points: Sequence[tuple[float, float]], first: str = "H", then: str = "V") -> Html:
    """A stepped line through the points; "H" goes first to the next point's x, "V" to its y."""
    start, *rest = points
    part = {"H": lambda x, y: f"H{x:g}", "V": lambda x, y: f"V{y:g}"}
    path = "".join(part[first](x, y) + part[then](x, y) for x, y in rest)
    return tag("path", d=f"M{start[0]:g} {start[1]:g}{path}", class_="line")


def spread(places: Sequence[float], least: float) -> list[float]:
    """Positions of labels, in the given order, moved apart so that no two are nearer than `least`."""
    order = sorted(range(len(places)), key=lambda index: places[index])
    moved = list(places)
    for before, after in pairwise(order):
        moved[after] = max(moved[after], moved[before] + least)
    return moved
