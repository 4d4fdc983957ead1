"""Which choice an answer field means: an index, a letter, or the text of the right choice."""

import re
from collections.abc import Callable, Sequence
from typing import Any

from sieve.errors import InputError
from sieve.tasks.row import Row
from sieve.utils.messages import shorten

Reading = Callable[[Any, Sequence[str]], "int | None"]


def resolve_answers(rows: Sequence[Row], name: str, choices: Sequence[Sequence[str]], where: str) -> list[int]:
    """Index of the right choice for each row.

    The column as a whole is read in one way, the first that fits all of its rows: "1" among the choices "0", "1",
    "2" may be a text in one row and an index in the next only by mistake.

    Args:
        name: the answer field.
        choices: texts to choose from, row by row.
        where: the task's file, for messages.

    Raises: InputError naming the first row whose answer is not among its choices.
    """
    values = [row.field(name) for row in rows]
    readings = _readings(values)
    columns = [[reading(value, texts) for value, texts in zip(values, choices, strict=True)] for reading in readings]
    best = min(columns, key=lambda column: column.count(None))  # the first of equals
    for row, value, texts, answer in zip(rows, values, choices, best, strict=True):
        if answer is None:
            listed = ", ".join(shorten(text.strip()) for text in texts[:6])
            raise InputError(
                f"{where}: {row.where}: the answer {shorten(value)} in field {name!r} is none of the choices "
                f"({listed}): make it an index from 0, a letter from A, or the text of one of them"
            )
    return best


def _readings(values: Sequence[Any]) -> list[Reading]:
    """In the order in which they are tried: numbers are indices before they are texts, anything else the reverse."""
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        return [_index, _as_text]
    return [_as_text, _lettered_text, _letter, _index]


def _as_text(value: Any, choices: Sequence[str]) -> int | None:
    wanted = str(value).strip().casefold()
    return next((index for index, text in enumerate(choices) if text.strip().casefold() == wanted), None)


def _lettered_text(value: Any, choices: Sequence[str]) -> int | None:
    """ "B. the text": the halves must agree; the text alone tells where the letter is none of the choices'."""
    match = re.match(r"\s*(\(?[A-Z][.):])\s*(.*)", str(value), re.DOTALL)
    if match is None:
        return None
    index = _letter(match[1], choices)
    if index is None:
        return _as_text(match[2], choices)
    return index if _words(match[2]) == _words(choices[index]) else None  # the letter vouches for the rest


def _letter(value: Any, choices: Sequence[str]) -> int | None:
    match = re.fullmatch(r"\s*\(?([A-Za-z])[.):]?\)?\s*", str(value))
    return _in_range(ord(match[1].upper()) - ord("A"), choices) if match else None


def _index(value: Any, choices: Sequence[str]) -> int | None:
    text = str(value).strip().lower()
    if text in ("false", "true"):  # a yes/no label: the second choice is the one that holds
        return _in_range(int(text == "true"), choices)
    try:
        number = float(text)
    except ValueError:
        return None
    return _in_range(int(number), choices) if number.is_integer() else None


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())


def _in_range(index: int, choices: Sequence[str]) -> int | None:
    return index if 0 <= index < len(choices) else None
