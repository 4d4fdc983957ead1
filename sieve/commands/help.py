"""The help of a command: its options in groups, one list under each heading."""

from typing import Any

from typer.core import TyperCommand

from sieve.utils.options import GROUPS

WIDEST = 1000  # columns: help texts take the whole width of the terminal
_GLUE = "\N{NO-BREAK SPACE}"


class GroupedCommand(TyperCommand):
    """A command whose help shows the groups that `derive.command` gave its options."""

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


def _glued(text: str) -> str:
    """The text with a default in brackets that no line break can part."""
    head, bracket, default = text.partition("[default: ")
    return head + (bracket + default).replace(" ", _GLUE)
