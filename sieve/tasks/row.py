"""A row of data and what its fields hold."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sieve.errors import InputError
from sieve.utils.messages import shorten

# Larger whole numbers are refused; Python cannot print far larger ones.
_LARGEST_BITS = 1024
# Fields of mappings nested up to this depth get names with dots.
_LEVELS = 10


@dataclass(frozen=True)
class Row:
    """A row of data: its fields and where it stands, for messages."""

    values: Mapping[str, Any]
    where: str

    def field(self, name: str) -> Any:
        """The value: texts (bytes are read as UTF-8), numbers, truth values and lists of them.

        Raises: InputError naming row and field, if the value is missing (null, NaN) or cannot be text.
        """
        value = self.values.get(name)
        if is_missing(value):
            raise InputError(f"{self.where} has no field {shorten(name)}: add it or remove the row")
        return self._readable(value, name)

    def is_blank(self, name: str) -> bool:
        """Whether the field is missing or white space."""
        value = self.values.get(name)
        return is_missing(value) or (isinstance(value, str | bytes) and not value.strip())

    def _readable(self, value: Any, name: str) -> Any:
        if isinstance(value, bytes | bytearray | memoryview):
            try:
                value = bytes(value).decode()
            except UnicodeDecodeError:
                raise self._refusal(name, "holds bytes that are not UTF-8 text", "store texts") from None
        if isinstance(value, str):
            if not value.isascii() and any("\ud800" <= char <= "\udfff" for char in value):
                raise self._refusal(name, "holds half a character (a lone surrogate)", "repair the text")
            return value
        if isinstance(value, int) and value.bit_length() > _LARGEST_BITS:
            raise self._refusal(name, f"holds {shorten(value)}", "write it as a text")
        if isinstance(value, Mapping):
            inner = f"name one of its fields, as in {name}.{shorten(next(iter(value), 'text')).strip(chr(39))}"
            raise self._refusal(name, "holds a mapping", inner)
        if isinstance(value, list | tuple):
            if any(map(is_missing, value)):
                raise self._refusal(name, "holds a list with an empty place (null)", "fill it or remove the row")
            return [self._readable(item, name) for item in value]
        return value

    def _refusal(self, name: str, problem: str, remedy: str) -> InputError:
        return InputError(f"{self.where}: the field {shorten(name)} {problem}: {remedy}")


def numbered(rows: Any, name: str) -> list[Row]:
    """Rows of mappings, named by their number."""
    return [Row(flat(values), f"{name} row {number}") for number, values in enumerate(rows, 1)]


def flat(values: Mapping[str, Any], prefix: str = "", levels: int = _LEVELS) -> dict[str, Any]:
    """The fields, and those of nested mappings by names with dots."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        found[f"{prefix}{name}"] = value
        if isinstance(value, Mapping) and levels:
            found = flat(value, f"{prefix}{name}.", levels - 1) | found
    return found


def plain(value: Any) -> str:
    """The value as a text; 3.0 as "3", because tables store whole numbers as floats if a column has gaps."""
    whole = isinstance(value, float) and value.is_integer()
    return str(int(value)) if whole else str(value)


def is_missing(value: Any) -> bool:
    """Whether the value is missing: null, or NaN, which tables use for it."""
    return value is None or (isinstance(value, float) and math.isnan(value))
