"""The speed of the dense and the pruned model on the machine that pruned it."""

from collections.abc import Mapping
from typing import Any

from sieve.run.report.html.markup import Html, number, table, tag

_NAMES = {
    "prefill": "tokens of a prompt, {} at once",
    "decode": "new tokens, one after the other",
}


def speed_parts(report: Mapping[str, Any]) -> list[Html]:
    """A table of tokens a second, and what they were measured on."""
    speed = report.get("speed") or {}
    seconds = speed.get("seconds") or {}
    rows = []
    for kind, name in _NAMES.items():
        dense, pruned = (number((seconds.get(which) or {}).get(kind)) for which in ("dense", "pruned"))
        if dense and pruned and dense > 0 and pruned > 0:
            length = (speed.get("tokens") or {}).get(kind, "")
            rows.append((name.format(length), f"{1 / dense:,.1f}", f"{1 / pruned:,.1f}", f"{dense / pruned:.2f} ×"))
    if not rows:
        return []
    where = f"On {speed.get('machine')}, in {speed.get('dtype')}: tokens a second at batch 1, in eager mode."
    note = "The two were measured one after the other: other work on the machine shows."
    return [table(("", "dense", "pruned", "as fast"), rows), tag("p", f"{where} {note}", class_="soft")]
