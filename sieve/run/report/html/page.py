"""The frame of a page: one file, readable on a phone, on paper, in the dark and without colour."""

from sieve import __version__
from sieve.run.report.html.markup import Html, joined, tag

_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
_STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #59636e; --line: #c9d1d9; --back: #fff; --cell: #e9edf2;
  --one: #0b57a4; --two: #b3470c; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --soft: #9aa5b1; --line: #3d444d; --back: #0f1318;
  --cell: #222a33; --one: #6cb2ff; --two: #ff9d5c; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem 1rem 3rem; max-width: 52rem; background: var(--back); color: var(--ink);
  font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: .5rem 0; }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .4rem; border-bottom: 1px solid var(--line); }
.verdict { font-size: 1.15rem; margin: .6rem 0 1rem; }
.note { border-left: .25rem solid var(--two); padding-left: .7rem; }
p.soft, figcaption, caption, footer { color: var(--soft); font-size: .9rem; }
caption, figcaption { text-align: left; }
figure { margin: .8rem 0; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; margin: .5rem 0; font-variant-numeric: tabular-nums; font-size: .92rem; }
th, td { padding: .2rem .8rem .2rem 0; text-align: right; border-bottom: 1px solid var(--line); vertical-align: top; }
th:first-child { text-align: left; font-weight: normal; min-width: 6.5rem; overflow-wrap: break-word; }
td, thead th { white-space: nowrap; }
thead th { color: var(--soft); font-weight: normal; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; font-size: .92rem; }
dt { color: var(--soft); } dd { margin: 0; }
svg { display: block; width: 100%; max-width: 36rem; height: auto; font: 13px system-ui, sans-serif; }
@media (max-width: 30rem) { svg { font-size: 15px; } }
svg text { fill: var(--ink); paint-order: stroke; stroke: var(--back); stroke-width: 3px; }
svg .soft { fill: var(--soft); }
svg .end { text-anchor: end; } svg .middle { text-anchor: middle; }
.axis { stroke: var(--line); } .rule { stroke: var(--soft); stroke-dasharray: 5 4; } .limit { stroke: var(--two); }
.cell { fill: var(--cell); } .fill { fill: var(--one); } .other { fill: var(--two); }
.hollow { fill: var(--back); stroke: var(--ink); stroke-width: 1.5; }
.cloud { fill: none; stroke: var(--soft); } .line { fill: none; stroke: var(--one); stroke-width: 2; }
.dotted { fill: none; stroke: var(--ink); stroke-width: 1.5; stroke-dasharray: 1.5 4; stroke-linecap: round; }
.kept { stroke: var(--ink); stroke-width: 2.5; }
.whisker { stroke: var(--ink); stroke-width: 1.5; } .mark { fill: var(--two); }
@media print { :root { color-scheme: light; --ink: #000; --soft: #444; --line: #999; --back: #fff; --cell: #eee;
  --one: #0b57a4; --two: #b3470c; } figure, tr { break-inside: avoid; } h2 { break-after: avoid; }
  body { padding: 0; } table { font-size: .8rem; } .scroll { overflow: visible; } }
"""


def page(title: str, generator: str, *parts: Html | None) -> str:
    """A whole document. generator: the command that made it, which later recognises its own files by it."""
    head = joined(
        [
            Html('<meta charset="utf-8">'),
            Html('<meta name="viewport" content="width=device-width, initial-scale=1">'),
            # The page loads nothing and runs nothing, whatever the data contains.
            Html(f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'),
            generated_by(generator),
            tag("title", title),
            tag("style", Html(_STYLE)),
        ]
    )
    footer = tag("footer", f"Made by Sieve {__version__}. Intervals are 95 % bootstrap intervals.")
    return f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head><body>{tag("main", *parts)}{footer}</body></html>\n'


def generated_by(generator: str) -> Html:
    """The text by which a page of this generator is recognised."""
    return Html(f'<meta name="generator" content="{generator}">')


def section(title: str, *parts: Html | None) -> Html | None:
    """A section, or None where there is nothing to show in it."""
    shown = [part for part in parts if part]
    return tag("section", tag("h2", title), *shown) if shown else None
