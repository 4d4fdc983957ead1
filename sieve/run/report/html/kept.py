"""The kept fraction of each matrix: blocks from left to right, a row for each kind of matrix."""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from sieve.run.report.html.chart import WIDTH, drawing, figure, label, rectangle
from sieve.run.report.html.markup import Html, number, percent, tag

_BLOCK = re.compile(r"(?P<before>.*?\.)?(?P<block>\d+)\.(?P<kind>.+)")
CELL_HEIGHT = 26
# Largest width of a cell.
_LARGEST = 40


def kept_figure(report: Mapping[str, Any]) -> Html | None:
    """A cell for each matrix, filled up to its kept fraction; a triangle above marks a bottleneck."""
    kept = {name: share for name, value in report.get("kept", {}).items() if (share := number(value)) is not None}
    if not kept:
        return None
    breaking = _bottlenecks(report)
    marks = " A triangle marks a bottleneck: one level less there breaks the tolerance." if breaking else ""
    caption = f"Kept parameters of each matrix, from none (empty) to all (full).{marks}"

    def cell(x: float, y: float, wide: float, name: str) -> list[Html]:
        return _cell(x, y, wide, kept[name], name, name in breaking)

    return grid_figure("What was kept of each matrix", caption, kept, cell, lambda name: percent(kept[name]))


def grid_figure(
    title: str,
    caption: str,
    names: Iterable[str],
    cell: Callable[[float, float, float, str], list[Html]],
    value: Callable[[str], str],
) -> Html:
    """A cell for each matrix, blocks from left to right and a row for each kind; others as a line with their value.

    cell: of x, y (its top left corner), its width and the matrix's name → its parts, `CELL_HEIGHT` high.
    """
    grid, single = _grid(names)
    blocks = max((block for row in grid.values() for block in row), default=0) + 1
    wide = min(WIDTH / blocks, _LARGEST)
    parts, top = [], 0.0
    for kind, row in grid.items():
        parts.append(label(0, top + 14, kind, "soft"))
        for block, name in row.items():
            parts += cell(block * wide, top + 26, wide, name)
        top += 26 + CELL_HEIGHT + 8
    for place in range(0, blocks, max(1, -(-blocks // 10))):
        parts.append(label(place * wide + wide / 2, top + 10, place, "middle soft"))
    parts.append(label(WIDTH, top + 26, "block", "end soft"))
    for name in single:
        parts.append(label(0, top + 44, f"{name}: {value(name)}", "soft"))
        top += 20
    return figure(drawing(title, top + 34, *parts), caption)


def _cell(x: float, y: float, wide: float, share: float, name: str, breaks: bool) -> list[Html]:
    gap = min(1.0, wide / 8)
    high = CELL_HEIGHT * min(max(share, 0), 1)
    hint = tag("title", f"{name}: {percent(share)} kept{', a bottleneck' if breaks else ''}")
    cell = [
        rectangle(x + gap, y, wide - 2 * gap, CELL_HEIGHT, "cell"),
        rectangle(x + gap, y + CELL_HEIGHT - high, wide - 2 * gap, high, "fill"),
        # The title lies on top of both, so that it shows wherever the pointer is.
        tag("rect", hint, x=round(x, 2), y=y, width=round(wide, 2), height=CELL_HEIGHT, fill="transparent"),
    ]
    if breaks:
        middle = x + wide / 2
        cell.append(tag("path", d=f"M{middle - 5:g} {y - 9:g}h10l-5 7z", class_="mark"))
    return cell


def _grid(names: Iterable[str]) -> tuple[dict[str, dict[int, str]], list[str]]:
    """Kind of matrix → block → name; and the names of matrices that are in no block."""
    grid: dict[str, dict[int, str]] = {}
    single = []
    for name in names:
        found = _BLOCK.fullmatch(name)
        if found is None or int(found["block"]) > 10_000:
            single.append(name)
        else:
            grid.setdefault(found["kind"], {})[int(found["block"])] = name
    return grid, single


def _bottlenecks(report: Mapping[str, Any]) -> set[str]:
    tested = report.get("bottlenecks") or []
    return {name for one in tested if one.get("breaks") is True for name in one["names"]}
