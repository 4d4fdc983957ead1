"""Text for a terminal: names of files, tasks and layers are printed literally and cannot control the terminal.

A console made here reads no markup and no emoji codes, and shows control characters as escapes (`\\x1b`). Rich is
imported with the first of them: a layer that only has something to note needs no terminal.
"""

from __future__ import annotations

import unicodedata
from functools import cache
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

# Characters that reverse the text around them, so that one name could look like another.
_REORDERING = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
# Control characters, lone surrogates (bytes of a file name that are not UTF-8), separators of lines and paragraphs.
_UNPRINTABLE = frozenset(("Cc", "Cs", "Zl", "Zp"))


def printable(text: str) -> str:
    """The text on one line, with escapes instead of characters that a terminal would act on.

    >>> printable("a\\x1b[2Jb")
    'a\\\\x1b[2Jb'
    """
    return "".join(_escaped(char) if _acts(char) else char for char in text)


def console(stderr: bool = False, file: TextIO | None = None) -> Console:
    """A console on standard output, standard error or a file that prints every string as it is."""
    return _plain_console()(stderr=stderr, file=file, markup=False, emoji=False, highlight=False)


@cache
def _plain_console() -> type[Console]:
    from rich.console import Console

    class PlainConsole(Console):
        def render_str(self, text: str, **options) -> Text:
            # Every string passes through here: printed text, titles, and cells of tables.
            return super().render_str(printable(text), **options)

    return PlainConsole


def _acts(char: str) -> bool:
    return char in _REORDERING or unicodedata.category(char) in _UNPRINTABLE


def _escaped(char: str) -> str:
    return char.encode("unicode_escape").decode("ascii")
