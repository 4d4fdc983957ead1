"""`sieve methods`: the projections, masks and searchers that there are."""

from typing import Any

from rich.table import Table

from sieve.commands.derive import command
from sieve.commands.options import AsJson
from sieve.commands.output import print_json
from sieve.registry import methods as known_methods
from sieve.searchers.algorithms.base import SEARCHERS
from sieve.utils.terminal import console


@command(AsJson)
def methods(run: AsJson, given: dict[str, Any]) -> None:
    """List projections, masks and searchers.

    --method takes a projection or a mask, --search a searcher.
    """
    listed = [
        {"name": one.name, "kind": one.makes.kind, "about": one.about, "source": one.source}
        for one in known_methods().values()
    ]
    listed += [{"name": one.name, "kind": "searcher", "about": one.about} for one in SEARCHERS.values()]
    if run.as_json:
        print_json({one.pop("name"): one for one in listed})
        return
    table = Table(box=None, pad_edge=False)
    for column in ("name", "kind", "what it does"):
        table.add_column(column)
    for one in listed:
        table.add_row(one["name"], one["kind"], one["about"])
    console().print(table)
