"""Values and names in messages: short, on one line, and cheap however large the value is."""

import reprlib
from collections.abc import Iterable
from typing import Any

# Bits of an integer that is written out; Python cannot write integers of more than 4,300 digits.
_LONGEST_INTEGER = 256


class _Repr(reprlib.Repr):
    """A repr that only looks at the first few items of the first few levels."""

    def __init__(self, limit: int):
        super().__init__()
        self.maxlevel = 3
        self.maxlist = self.maxtuple = self.maxset = self.maxfrozenset = self.maxdeque = self.maxarray = (
            self.maxdict
        ) = 6
        self.maxstring = self.maxother = self.maxlong = limit
        self.fillvalue = "…"

    def repr_int(self, value: int, level: int) -> str:
        bits = value.bit_length()
        return repr(value) if bits <= _LONGEST_INTEGER else f"a whole number of {bits:,} bits"

    def repr_str(self, value: str, level: int) -> str:
        return repr(value if len(value) <= self.maxstring else value[: self.maxstring] + self.fillvalue)

    def repr_bytes(self, value: bytes, level: int) -> str:
        return repr(value[: self.maxstring]) + (self.fillvalue if len(value) > self.maxstring else "")


def shorten(value: Any, limit: int = 60) -> str:
    """`repr(value)` in at most `limit` characters, without building the whole of it.

    >>> shorten([[0] * 1000] * 1000, 30)
    '[[0, 0, 0, 0, 0, 0, …], [0, 0…'
    """
    text = " ".join(_Repr(limit).repr(value).split())
    return text if len(text) <= limit else text[: limit - 1] + "…"


def listed(names: Iterable[Any], limit: int = 20) -> str:
    """Names with commas between them; of a longer list only the first `limit`, and their total number."""
    names = list(names)
    text = ", ".join(_plain(name) for name in names[:limit])
    return text if len(names) <= limit else f"{text}, … ({len(names):,} in all)"


def one_line(error: BaseException, limit: int = 300) -> str:
    """The message of another library's error, on one line."""
    text = " ".join(str(error)[: 4 * limit].split()) or type(error).__name__
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _plain(name: Any, limit: int = 60) -> str:
    return shorten(name, limit) if not isinstance(name, str) or len(name) > limit else name
