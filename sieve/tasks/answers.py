"""Which choice an answer field means: an index, a letter, or the text of the right choice."""

import re
from collections.abc import Callable, Sequence
from typing import Any

from sieve.errors import InputError
from sieve.tasks.row import Row, plain
from sieve.utils.messages import shorten

ANSWER_IS = ("index", "text", "letter")

Reading = Callable[[Any, Sequence[str]], "int | None"]
Column = list["int | None"]


def resolve_answers(
    rows: Sequence[Row], name: str, choices: Sequence[Sequence[str]], where: str, answer_is: str | None = None
) -> list[int]:
    """Index of the right choice for each row.

    All rows of the column are read in the same way, one that fits every row: "1" among the choices "0", "1", "2" may be
    a text in one row and an index in the next only by mistake.

    Args:
        name: the answer field.
        choices: texts to choose from, row by row.
        where: the task's file, for messages.
        answer_is: "index", "text" or "letter"; None finds it out.

    Raises: InputError naming the first row whose answer is not among its choices, or the first row with two meanings
        if two ways of reading fit all rows.
    """
    values = [row.field(name) for row in rows]
    columns: list[tuple[str, Column]] = []
    for kind, reading in _READINGS:
        # "true" is an index only where it is nothing else: of the choices " True" and " False" it is the first.
        last_resort = reading is _index_or_truth and any(None not in column for _, column in columns)
        if answer_is in (None, kind) and not last_resort:
            columns.append((kind, [reading(value, texts) for value, texts in zip(values, choices, strict=True)]))
    fitting: dict[str, Column] = {}
    for kind, column in columns:
        if None not in column:
            fitting.setdefault(kind, column)
    if not fitting:
        closest = min((column for _, column in columns), key=lambda column: column.count(None))
        first = closest.index(None)
        raise _none_of(rows[first], name, choices[first], where, answer_is)
    for row, value, texts, *answers in zip(rows, values, choices, *fitting.values(), strict=True):
        if len(set(answers)) > 1:
            meanings = {kind: texts[answer] for kind, answer in zip(fitting, answers, strict=True)}
            raise _two_meanings(row, name, value, meanings, where)
    return next(iter(fitting.values()))


def _none_of(row: Row, name: str, texts: Sequence[str], where: str, answer_is: str | None) -> InputError:
    listed = ", ".join(shorten(text.strip()) for text in texts[:6])
    remedy = {
        None: "make it an index from 0, a letter from A, or the text of one of them",
        "index": "answer_is asks for an index from 0",
        "text": "answer_is asks for the text of one of them",
        "letter": "answer_is asks for a letter from A",
    }
    return InputError(
        f"{where}: {row.where}: the answer {shorten(row.field(name))} in field {shorten(name)} is none of the choices "
        f"({listed}): {remedy[answer_is]}"
    )


def _two_meanings(row: Row, name: str, value: Any, meanings: dict[str, str], where: str) -> InputError:
    read = {"index": "as an index from 0", "text": "as a text", "letter": "as a letter from A"}
    spelled = ", ".join(f"{read[kind]} it is {shorten(text.strip())}" for kind, text in meanings.items())
    keys = " or ".join(f"answer_is: {kind}" for kind in meanings)
    return InputError(
        f"{where}: the field {shorten(name)} can be read in {len(meanings)} ways, which fit all rows and differ: "
        f"{row.where} has {shorten(value)}; {spelled}. Say which by {keys}"
    )


def _as_text(value: Any, choices: Sequence[str]) -> int | None:
    wanted = plain(value).strip()
    exact = [index for index, text in enumerate(choices) if text.strip() == wanted]
    if exact:
        return exact[0]
    # Case counts only where it tells choices apart: " us" and " US".
    alike = [index for index, text in enumerate(choices) if text.strip().casefold() == wanted.casefold()]
    return alike[0] if len(alike) == 1 else None


def _lettered_text(value: Any, choices: Sequence[str]) -> int | None:
    """ "B. the text": letter and text must agree; if no choice has this letter, the text alone decides."""
    match = re.match(r"\s*(\(?[A-Z][.):])\s*(.*)", str(value), re.DOTALL)
    if match is None:
        return None
    index = _letter(match[1], choices)
    if index is None:
        return _as_text(match[2], choices)
    # A valid letter must agree with its text.
    return index if _words(match[2]) == _words(choices[index]) else None


def _letter(value: Any, choices: Sequence[str]) -> int | None:
    match = re.fullmatch(r"\s*\(?([A-Za-z])[.):]?\)?\s*", str(value))
    return _in_range(ord(match[1].upper()) - ord("A"), choices) if match else None


def _index(value: Any, choices: Sequence[str]) -> int | None:
    try:
        number = float(plain(value))
    except ValueError:
        return None
    return _in_range(int(number), choices) if number.is_integer() else None


def _index_or_truth(value: Any, choices: Sequence[str]) -> int | None:
    """A yes/no label: false is the first choice, true the second."""
    text = str(value).strip().lower()
    return _in_range(int(text == "true"), choices) if text in ("false", "true") else _index(value, choices)


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())


def _in_range(index: int, choices: Sequence[str]) -> int | None:
    return index if 0 <= index < len(choices) else None


# The order matters: among readings of one name, the first that fits all rows is used.
_READINGS: list[tuple[str, Reading]] = [
    ("index", _index),
    ("text", _as_text),
    ("text", _lettered_text),
    ("letter", _letter),
    ("index", _index_or_truth),
]
