"""HTML and SVG from small functions. `tag` escapes every text, so no name or number can be markup."""

import html
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from sieve.utils.terminal import printable

MISSING = "–"


class Html(str):
    """A text that is markup already."""


def tag(name: str, *children: Any, **attributes: Any) -> Html:
    """An element. Children that are not `Html` are escaped, None is left out, and `class_` stands for class.

    >>> tag("p", "a < b", tag("b", 1), class_="x")
    '<p class="x">a &lt; b<b>1</b></p>'
    """
    given = (
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(_text(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Html(f"<{name}{''.join(given)}>{joined(children)}</{name}>")


def joined(children: Iterable[Any]) -> Html:
    """Elements and texts, one after the other."""
    return Html(
        "".join(one if isinstance(one, Html) else html.escape(_text(one)) for one in children if one is not None)
    )


def table(head: Sequence[Any], rows: Iterable[Sequence[Any]], caption: str | None = None) -> Html:
    """A table in a box that scrolls; the first column holds the rows' names."""
    body = [
        tag("tr", tag("th", row[0], scope="row"), *(tag("td", cell) for cell in row[1:])) for row in map(list, rows)
    ]
    top = tag("thead", tag("tr", *(tag("th", cell, scope="col") for cell in head))) if any(head) else None
    named = None if caption is None else tag("caption", caption)
    return tag("div", tag("table", named, top, tag("tbody", *body)), class_="scroll")


def leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Names and values in their order; values of nested mappings get names with dots."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def number(value: Any) -> float | None:
    """The value if it is a finite number, else None, as for a damaged report."""
    known = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if known and math.isfinite(value) else None


def percent(value: Any, digits: int = 1) -> str:
    found = number(value)
    return MISSING if found is None else f"{100 * found:.{digits}f} %"


def score(value: Any, sign: str = "") -> str:
    found = number(value)
    return MISSING if found is None else f"{found:{sign}.3f}".replace("-", "−")


def points(value: Any) -> str:
    """A difference of accuracies, in percentage points."""
    found = number(value)
    return MISSING if found is None else f"{100 * abs(found):.1f} points"


def interval(value: Any, sign: str = "") -> str:
    """ "0.763 [0.737, 0.788]"; the difference of two scores with its sign."""
    if not isinstance(value, dict):
        return MISSING
    low, high = score(value.get("low"), sign), score(value.get("high"), sign)
    return f"{score(value.get('value'), sign)} [{low}, {high}]"


def amount(value: Any, unit: str = "") -> str:
    """A large number in three digits: 134.5 M, 1.2 G."""
    found = number(value)
    if found is None:
        return MISSING
    for name, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(found) >= size:
            return f"{found / size:,.1f} {name}{unit}"
    return f"{found:,.0f} {unit}".rstrip()


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.2f}".rstrip("0").rstrip(".") if math.isfinite(value) else MISSING
    return printable(str(value))
