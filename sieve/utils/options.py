"""An option, written down once: a dataclass field that knows its help, its choices and its range.

Each component owns its options in such a dataclass. The command line, the keys of recipes, the checks of values and the
table in the docs all derive from it. Imports no torch.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field, fields
from functools import cache
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from sieve.errors import InputError
from sieve.utils.messages import shorten

GROUPS = ("Task", "Size", "Method", "Search", "Machine", "Output")
"""The parts of `sieve prune --help`."""

# Largest integer that tensors can hold. NaN fails this comparison too.
LARGEST = 2**63 - 1
_WORDS: dict[type, str] = {int: "whole number", float: "number", str: "text", bool: "true or false", NoneType: "null"}


@dataclass(frozen=True)
class Option:
    """All facts about one option.

    name: in Python and in recipes; on the command line with hyphens.
    types: of its values. default: `dataclasses.MISSING` where it must be given.
    help: one sentence without its full stop. group: one of `GROUPS`.
    choices: the values there are, or a function that lists them. listed: whether help texts list them.
    within: an interval such as "(0, 1]" or "[1, ∞)"; "" is any number.
    hint: what a message about a value outside adds.
    shown: the default in words, if the value alone is not clear.
    check: raises InputError for a bad value, instead of choices and range.
    flags: on the command line, if they do not follow from the name. argument: given by its position there.
    bare: the value that a flag without a value stands for, if the value is optional.
    """

    name: str
    types: tuple[type, ...]
    default: Any
    help: str
    group: str = ""
    choices: tuple[str, ...] | Callable[[], Iterable[str]] = ()
    listed: bool = True
    within: str = ""
    hint: str = ""
    shown: str = ""
    check: Callable[[Any], None] | None = None
    flags: tuple[str, ...] = ()
    argument: bool = False
    bare: str = ""

    @property
    def flag(self) -> str:
        """The option as a user types it."""
        return self.flags[0] if self.flags else f"--{self.name.replace('_', '-')}"

    @property
    def known(self) -> tuple[str, ...]:
        """The allowed values; empty if there is no list of them."""
        return tuple(self.choices()) if callable(self.choices) else self.choices

    @property
    def default_text(self) -> str:
        """The default as help texts show it; empty for a switch that is off and for what has none."""
        if self.shown or any(self.default is none for none in (dataclasses.MISSING, None, False)):
            return self.shown
        return "on" if self.default is True else str(self.default)

    @property
    def range_text(self) -> str:
        """The allowed values in words: "2:4 or 4:8", "in [0, 1)", "at least 1"; empty if all are allowed."""
        if known := self.known:
            return " or ".join(filter(None, (", ".join(known[:-1]), known[-1])))
        return _range_text(self.within) if self.within else ""

    def require(self, value: Any) -> None:
        """InputError if the value cannot work."""
        # Options with a check of their own also check whole numbers there.
        numeric = float if self.check else int | float
        if isinstance(value, numeric) and not -LARGEST <= value <= LARGEST:
            raise InputError(f"{self.name} must be a finite number, at most {LARGEST:,}, got {shorten(value)}")
        if self.check is not None:
            self.check(value)
        elif value is None:
            return
        elif self.within and not _inside(value, self.within):
            hint = f": {self.hint}" if self.hint else ""
            raise InputError(f"{self.flag} must be {_range_text(self.within)}, got {shorten(value)}{hint}")
        elif self.choices and value not in self.known:
            raise InputError(f"unknown {self.name} {shorten(value)}: choose one of {', '.join(self.known)}")

    def require_type(self, value: Any) -> None:
        """InputError for a value of another type."""
        accepted = (*self.types, int) if float in self.types else self.types
        if not isinstance(value, accepted) or (isinstance(value, bool) and bool not in self.types):
            words = " or ".join(_WORDS[one] for one in self.types)
            raise InputError(f"{self.name} must be of type {words}, got {shorten(value)}")

    def read(self, value: Any) -> Any:
        """The value that a user typed, where it may be a number or a word."""
        for kind in (int, float) if isinstance(value, str) else ():
            with suppress(ValueError):
                if kind in self.types:
                    return kind(value)
        return value


def option(default: Any, help: str, **more: Any) -> Any:
    """A field of a config dataclass; `more` are fields of `Option`."""
    return field(default=default, metadata={"help": help, **more})


@cache
def options_of(config: type) -> dict[str, Option]:
    """The options of a config dataclass by name, its own before inherited ones; fields without help are no options."""
    hints = get_type_hints(config)
    group = getattr(config, "GROUP", "")

    def inherited(one: dataclasses.Field) -> bool:
        return one.name not in config.__annotations__ and not one.metadata.get("argument")

    return {
        one.name: Option(one.name, _types(hints[one.name]), one.default, **{"group": group, **one.metadata})
        for one in sorted(fields(config), key=inherited)
        if "help" in one.metadata
    }


def require_types(config: Any) -> None:
    """InputError for the first value of another type than its field's."""
    for name, one in options_of(type(config)).items():
        one.require_type(getattr(config, name))


def require_values(config: Any) -> None:
    """InputError for the first value that its option does not allow."""
    for name, one in options_of(type(config)).items():
        value = getattr(config, name)
        if one.check is None:
            one.require_type(value)
        one.require(value)


def _types(hint: Any) -> tuple[type, ...]:
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def _ends(within: str) -> tuple[float, float]:
    low, high = (math.inf if end.strip() == "∞" else float(end) for end in within[1:-1].split(","))
    return low, high


def _inside(value: float, within: str) -> bool:
    low, high = _ends(within)
    above = value >= low if within[0] == "[" else value > low
    return above and (value <= high if within[-1] == "]" else value < high)


def _range_text(within: str) -> str:
    low, high = _ends(within)
    if high < math.inf:
        return f"in {within}"
    return f"at least {low:g}" if within[0] == "[" else f"above {low:g}"
