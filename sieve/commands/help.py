"""The help of a command: its options in groups, one list under each heading."""

from collections.abc import Sequence
from typing import Any

from typer.core import TyperCommand

from sieve.errors import InputError
from sieve.run.recipe import recipe_options
from sieve.utils.options import GROUPS, Option

# Columns: help texts use the whole width of the terminal up to this.
WIDEST = 1000
_GLUE = "\N{NO-BREAK SPACE}"


class GroupedCommand(TyperCommand):
    """A command whose help shows the groups that `derive.command` gave its options."""

    def parse_args(self, context: Any, args: list[str]) -> list[str]:
        return super().parse_args(context, with_bare_values(args))

    def format_options(self, context: Any, formatter: Any) -> None:
        lists: dict[str, list[tuple[str, str]]] = {group: [] for group in GROUPS}
        for parameter in self.get_params(context):
            group = getattr(parameter, "rich_help_panel", None) or GROUPS[-1]
            if (record := parameter.get_help_record(context)) is not None:
                lists[group].append((record[0], _glued(record[1])))
        for group, records in lists.items():
            if records:
                with formatter.section(group):
                    formatter.write_dl(records)
        formatter.buffer = [text.replace(_GLUE, " ") for text in formatter.buffer]


def with_bare_values(args: Sequence[str]) -> list[str]:
    """The arguments, with a value added to each flag whose value is optional and missing."""
    bare = {option.flag: option for option in recipe_options().values() if option.bare}
    found: list[str] = []
    for place, argument in enumerate(args):
        if argument == "--":
            return found + list(args[place:])
        found.append(argument)
        if argument in bare and not _is_value(bare[argument], args[place + 1 : place + 2]):
            found.append(bare[argument].bare)
    return found


def _is_value(option: Option, following: Sequence[str]) -> bool:
    try:
        for one in following:
            option.require(one)
    except InputError:
        return False
    return bool(following)


def _glued(text: str) -> str:
    """The text with a default in brackets that no line break can split."""
    head, bracket, default = text.partition("[default: ")
    return head + (bracket + default).replace(" ", _GLUE)
