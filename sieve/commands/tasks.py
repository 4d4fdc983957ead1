"""`sieve tasks`: what is built in."""

from typing import Any

from rich.table import Table

from sieve.commands.derive import command
from sieve.commands.options import AsJson
from sieve.commands.output import print_json
from sieve.tasks import builtin_tasks, load_task
from sieve.utils.terminal import console


@command(AsJson)
def tasks(run: AsJson, given: dict[str, Any]) -> None:
    """List the built-in tasks."""
    listed = {name: load_task(name) for name in builtin_tasks()}
    if run.as_json:
        print_json({name: {"type": task.type, "description": task.description} for name, task in listed.items()})
        return
    table = Table(title="built-in tasks")
    for column in ("name", "type", "description"):
        table.add_column(column)
    for name, task in listed.items():
        table.add_row(name, task.type, task.description)
    console().print(table)
