"""`report.html`: one run on one page."""

from collections.abc import Mapping
from typing import Any

from sieve.run.report.html.curve import curve_figure, progress_figure, saved_parts
from sieve.run.report.html.kept import kept_figure
from sieve.run.report.html.markup import Html, leaves, number, tag
from sieve.run.report.html.page import page, section
from sieve.run.report.html.scores import accuracy_parts, bars, size_parts
from sieve.run.report.html.spectra import spectra_figure
from sieve.run.report.html.speed import speed_parts
from sieve.run.report.html.verdict import verdict
from sieve.run.report.show import healing_line, quantization_line
from sieve.utils import progress
from sieve.utils.messages import one_line

REPORT_PAGE = "report.html"
"""Its name in a pruned model's folder."""


def run_pages(report: Mapping[str, Any], recipe: Mapping[str, Any]) -> dict[str, str]:
    """File name → text of a run's pages; empty, with a note, if drawing fails: a run must not be lost for a page."""
    try:
        return {REPORT_PAGE: run_page(report, recipe)}
    except Exception as error:
        progress.note(f"no {REPORT_PAGE}: {type(error).__name__}: {one_line(error)}")
        return {}


def run_page(report: Mapping[str, Any], recipe: Mapping[str, Any]) -> str:
    """The page of a run, from its `report.json` and `recipe.yaml` (empty where there is none)."""
    title = f"{report['model']} pruned for {report['task']}"
    notes = [tag("p", note, class_="note") for note in report.get("notes") or ()]
    if report.get("healing"):
        notes.append(tag("p", healing_line(report["healing"])))
    if report.get("quantization"):
        notes.append(tag("p", quantization_line(report["quantization"])))
    return page(
        title,
        "sieve prune",
        tag("h1", title),
        tag("p", verdict(report, recipe), class_="verdict"),
        *notes,
        section("Size", *size_parts(report)),
        section("Accuracy", *accuracy_parts(report)),
        section("Speed here", *speed_parts(report)),
        section("What was kept", kept_figure(report), _left_dense(report)),
        section("Spectra", spectra_figure(report)),
        section("Accuracy against size", curve_figure(report, recipe)),
        section("The search", progress_figure(report, recipe), *saved_parts(report)),
        section("Time", _time(report)),
        section("Recipe", definitions(recipe)),
        section("Versions", definitions(report.get("versions") or {})),
    )


def definitions(values: Mapping[str, Any]) -> Html | None:
    """Names and values without those that are None; nested values get names with dots."""
    given = [(name, value) for name, value in leaves(values) if value is not None]
    rows = (tag(kind, text) for one in given for kind, text in zip(("dt", "dd"), one, strict=True))
    return tag("dl", *rows) if given else None


def _left_dense(report: Mapping[str, Any]) -> Html | None:
    left = report.get("left_dense") or {}
    items = (tag("li", f"{name}: {reason}") for name, reason in left.items())
    return tag("div", tag("p", "Left dense:"), tag("ul", *items)) if left else None


def _time(report: Mapping[str, Any]) -> Html | None:
    seconds = {stage: found for stage, value in report["seconds"].items() if (found := number(value)) is not None}
    if not seconds:
        return None
    rows = [(stage, value, f"{value:,.1f} s") for stage, value in seconds.items()]
    return bars(rows, "Seconds by stage", f"{sum(seconds.values()):,.0f} s in all.", max(seconds.values()))
