"""Groups of rows that ask the same question or share a value. A group is never divided among the splits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from typing import Any

from sieve.tasks.row import Row, plain


def same(text: str) -> str:
    """The text without differences in case and white space."""
    return " ".join(text.casefold().split())


def question_names(prompts: Sequence[str], choices: Sequence[Sequence[str]]) -> list[str]:
    """The key of a question: its prompt and, if rows with this prompt have different choices, its choices.

    The order of choices makes no difference.
    """
    asked = [same(prompt) for prompt in prompts]
    offered = [tuple(sorted(map(same, texts))) for texts in choices]
    variants: dict[str, set[tuple[str, ...]]] = {}
    for prompt, texts in zip(asked, offered, strict=True):
        variants.setdefault(prompt, set()).add(texts)
    return [
        prompt if len(variants[prompt]) == 1 else "\n".join((prompt, *texts))
        for prompt, texts in zip(asked, offered, strict=True)
    ]


def prompt_of(question: str) -> str:
    """The prompt in the key of a question."""
    return question.partition("\n")[0]


def group_names(rows: Sequence[Row], questions: Sequence[str], fields: Sequence[str]) -> list[str]:
    """A name for each row, the same for rows that share a question or a value of one of the fields.

    Rows that share something with a third row share its name too. The name is the smallest of the questions in the
    group, so that it does not depend on the order of the rows.
    """
    if not fields:
        return list(questions)
    sets = _DisjointSets()
    for row, question in zip(rows, questions, strict=True):
        for value in _shared(row, fields):
            sets.join(("question", question), value)
    least: dict[Hashable, str] = {}
    for question in questions:
        root = sets.root(("question", question))
        least[root] = min(question, least.get(root, question))
    # If one group has all rows of a prompt, the prompt is its name, as for questions whose choices do not differ.
    prompts = Counter(name.partition("\n")[0] for name in least.values())
    short = {name: prompt for name in least.values() if prompts[prompt := name.partition("\n")[0]] == 1}
    names = (least[sets.root(("question", question))] for question in questions)
    return [short.get(name, name) for name in names]


def _shared(row: Row, fields: Sequence[str]) -> Iterable[tuple[str, str, str]]:
    """Values of the fields, each item of a list on its own; none where a field is empty."""
    for name in fields:
        if row.is_blank(name):
            continue
        value: Any = row.field(name)
        for item in value if isinstance(value, list) else [value]:
            yield "field", name, same(plain(item))


class _DisjointSets:
    def __init__(self) -> None:
        self._parents: dict[Hashable, Hashable] = {}

    def root(self, item: Hashable) -> Hashable:
        parent = self._parents.setdefault(item, item)
        while parent != item:
            # Halves the path, so that later look-ups are short.
            self._parents[item] = self._parents[parent]
            item, parent = parent, self._parents[parent]
        return item

    def join(self, one: Hashable, other: Hashable) -> None:
        self._parents[self.root(one)] = self.root(other)
