"""How the output energy of each matrix is spread over ranks, and the rank that was kept."""

from collections.abc import Mapping
from typing import Any

from sieve.run.report.html.chart import line, rectangle
from sieve.run.report.html.kept import CELL_HEIGHT, grid_figure
from sieve.run.report.html.markup import Html, number, tag

_SHARES = ("holds_99", "holds_90")
_CAPTION = (
    "Of the full rank, from none (empty) to all: the wide filled part holds 90 % of the output energy on the "
    "calibration data, with the narrow part above it 99 %. The line is the rank that was kept; matrices without one "
    "are dense."
)


def spectra_figure(report: Mapping[str, Any]) -> Html | None:
    """A cell for each matrix, filled up to the ranks that hold its energy, with a line at the rank that was kept."""
    found = {name: ranks for name, one in (report.get("spectra") or {}).items() if (ranks := _ranks(one))}
    if not found:
        return None

    def cell(x: float, y: float, wide: float, name: str) -> list[Html]:
        return _cell(x, y, wide, found[name], _text(name, found[name]))

    return grid_figure(
        "How output energy is spread over ranks", _CAPTION, found, cell, lambda name: _text("", found[name])
    )


def _cell(x: float, y: float, wide: float, ranks: Mapping[str, float], hint: str) -> list[Html]:
    gap = min(1.0, wide / 8)

    def place(name: str) -> float:
        return y + CELL_HEIGHT * (1 - min(max(ranks[name] / ranks["full"], 0), 1))

    parts = [rectangle(x + gap, y, wide - 2 * gap, CELL_HEIGHT, "cell")]
    for name, inset in zip(_SHARES, (0.35 * wide, gap), strict=True):
        parts.append(rectangle(x + inset, place(name), wide - 2 * inset, y + CELL_HEIGHT - place(name), "fill"))
    if "kept" in ranks:
        parts.append(line(x, place("kept"), x + wide, place("kept"), "kept"))
    # The title lies on top, so that it shows wherever the pointer is.
    over = {"x": round(x, 2), "y": y, "width": round(wide, 2), "height": CELL_HEIGHT, "fill": "transparent"}
    return [*parts, tag("rect", tag("title", hint), **over)]


def _text(name: str, ranks: Mapping[str, float]) -> str:
    kept = f"rank {ranks['kept']:.0f} kept" if "kept" in ranks else "dense"
    text = (
        f"90 % of the energy in rank {ranks['holds_90']:.0f}, 99 % in {ranks['holds_99']:.0f} of {ranks['full']:.0f}; "
        f"{kept}"
    )
    return f"{name}: {text}" if name else text


def _ranks(one: Any) -> dict[str, float] | None:
    """The numbers of one matrix; None where a report lacks them, as a damaged one does."""
    given = one if isinstance(one, Mapping) else {}
    found = {name: value for name in ("full", *_SHARES, "kept") if (value := number(given.get(name))) is not None}
    return found if {"full", *_SHARES} <= found.keys() and found["full"] > 0 else None
