"""One question of a task, and how it is rendered from a row of data."""

from __future__ import annotations

import re
import string
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from sieve.errors import InputError
from sieve.tasks.answers import resolve_answers
from sieve.tasks.chat import CONVERSATION, ChatRow, Turn, as_text, unanswered
from sieve.tasks.identity import group_names, question_names, same
from sieve.tasks.row import Row
from sieve.utils import progress
from sieve.utils.messages import listed, shorten

if TYPE_CHECKING:
    from sieve.tasks.task import Task


@dataclass(frozen=True)
class Example:
    """A rendered question.

    prompt: what the model reads, few-shot examples included; of a conversation its turns as plain text; "" for texts
        that are scored as a whole.
    choices: continuations of the prompt (leading space included) of a multiple-choice question, else empty.
    answer: index of the right choice; -1 where there are no choices.
    references: right answers of a generation question; for perplexity only the text that is scored.
    neutral: the prompt without its content, against which `normalize: prior` judges a choice.
    question: two examples with the same value are the same question, even if their few-shot examples differ.
    group: examples of one group are in one split; "" where the question alone counts.
    where: the row of the data that it was made of, for messages.
    turns: the conversation that a chat template is to render instead of `prompt`; empty where there is none.
    """

    prompt: str
    choices: tuple[str, ...] = ()
    answer: int = -1
    references: tuple[str, ...] = ()
    neutral: str = ""
    question: str = ""
    group: str = ""
    where: str = field(default="", compare=False, repr=False)
    turns: tuple[Turn, ...] = field(default=(), repr=False)

    @property
    def target(self) -> str:
        """The right text, as it follows the prompt."""
        if self.choices:
            return self.choices[self.answer]
        return continuing(self.prompt, self.references[0])


def continuing(prompt: str, text: str) -> str:
    """`text` from a data field, with a space before it unless the prompt's end makes it needless."""
    return text if not prompt or prompt[-1].isspace() or text[:1].isspace() else f" {text}"


def template_fields(template: str, where: str) -> list[str]:
    """Names of the fields in a template such as "Review: {text}"; braces are doubled to stand for themselves."""
    try:
        parsed = list(string.Formatter().parse(template))
    except ValueError as error:
        raise InputError(f"{where}: {error} in {shorten(template)}: write {{{{ and }}}} for literal braces") from None
    for _, name, spec, conversion in parsed:
        if name is not None and (not name or spec or conversion):
            raise InputError(f"{where}: {shorten(template)} must name plain fields, as in {{text}}")
    return list(dict.fromkeys(name for _, name, _, _ in parsed if name is not None))


def fill(template: str, values: dict[str, str]) -> str:
    """The template with `values` instead of its fields."""
    parsed = string.Formatter().parse(template)
    return "".join(literal + ("" if name is None else values[name]) for literal, name, _, _ in parsed)


def render(task: Task, rows: Sequence[Row]) -> list[Example]:
    """Examples of the task, one per row.

    Raises: InputError naming the row and the field that cannot be used.
    """
    check_fields(task, rows)
    examples = _asked(task, rows)
    prompts = [example.prompt for example in examples]
    if task.type == "multiple_choice":
        choices = [example.choices for example in examples]
        answers = resolve_answers(rows, task.answer, choices, task.where, task.answer_is)
        questions = question_names(prompts, choices)
        examples = [replace(example, answer=answer) for example, answer in zip(examples, answers, strict=True)]
    else:
        questions = list(map(same, prompts))
        examples = [_answered(task, example, row) for example, row in zip(examples, rows, strict=True)]
    fields = (*task.group, CONVERSATION) if task.messages else task.group
    groups = group_names(rows, questions, fields)
    named = zip(examples, questions, groups, strict=True)
    return [replace(example, question=question, group=group) for example, question, group in named]


def render_unanswered(task: Task, rows: Sequence[Row]) -> list[Example]:
    """Examples without right answers, outside the splits; rows need only the fields of prompt and choices."""
    check_fields(task, rows, answered=False)
    return _asked(task, [unanswered(task, row) for row in rows] if task.messages else rows)


def _answered(task: Task, example: Example, row: Row) -> Example:
    if isinstance(row, ChatRow):
        return replace(example, references=(row.answer.strip(),))
    if task.has_prompts:
        return replace(example, references=_references(row, task.answer))
    return replace(example, prompt="", references=(example.prompt,))


def _asked(task: Task, rows: Sequence[Row]) -> list[Example]:
    """One example per row with its prompt and choices, without the right answer."""
    if task.messages:
        return [Example(as_text(row.turns), turns=row.turns, where=row.where) for row in rows]
    names = template_fields(task.prompt, task.where)
    neutral = fill(task.prompt, dict.fromkeys(names, "")) if task.normalize == "prior" else ""
    examples = [Example(fill(task.prompt, _texts(row, names)), neutral=neutral, where=row.where) for row in rows]
    if task.type != "multiple_choice":
        return examples
    asked = zip(examples, rows, strict=True)
    return [replace(example, choices=_choices(task, row, example.prompt)) for example, row in asked]


def without_empty(task: Task, pools: Mapping[str, Sequence[Row]]) -> dict[str, list[Row]]:
    """Rows with a text, for perplexity tasks; rows without one are left out and counted in a note."""
    check_fields(task, [row for rows in pools.values() for row in rows])
    names = template_fields(task.prompt, task.where)
    kept = {pool: [row for row in rows if not all(map(row.is_blank, names))] for pool, rows in pools.items()}
    total, left = (sum(map(len, rows.values())) for rows in (pools, kept))
    if not left:
        raise InputError(f"{task.where}: all {total:,} texts are empty: check prompt, which names {listed(names)}")
    if left < total:
        progress.warn(f"{task.where}: {total - left:,} of {total:,} texts are empty and left out")
    return {pool: rows for pool, rows in kept.items() if rows}


def check_fields(task: Task, rows: Sequence[Row], answered: bool = True) -> None:
    """InputError for a field that the task names and the data does not have; `answered`: of answers and groups too."""
    known = list(dict.fromkeys(name for row in rows for name in row.values))
    wanted = [("prompt", name) for name in template_fields(task.prompt, task.where)]
    wanted += [("messages", task.messages)] if task.messages else []
    if isinstance(task.choices, str):
        wanted.append(("choices", task.choices))
    else:
        wanted += [("choices", name) for text in task.choices for name in template_fields(text, task.where)]
    if answered:
        wanted += [("answer", task.answer)] if task.answer else []
        wanted += [("group", name) for name in task.group]
    for key, name in wanted:
        if name not in known:
            raise InputError(
                f"{task.where}: {key} names an unknown field {shorten(name)}; the data has {listed(known)}"
            )


def with_shots(example: Example, shots: Sequence[Example]) -> Example:
    """The example with solved ones before it."""
    before = "".join(f"{shot.prompt}{shot.target}\n\n" for shot in shots)
    return replace(example, prompt=before + example.prompt, neutral=before + example.neutral)


def _texts(row: Row, names: Iterable[str]) -> dict[str, str]:
    return {name: _text(row.field(name)) for name in names}


def _text(value: Any) -> str:
    return "\n".join(str(item) for item in value) if isinstance(value, list) else str(value)


def _references(row: Row, name: str) -> tuple[str, ...]:
    value = row.field(name)
    texts = tuple(str(item).strip() for item in (value if isinstance(value, list) else [value]))
    if not texts or not all(texts):
        raise InputError(f"{row.where}: the answer field {shorten(name)} is empty: remove the row or give it an answer")
    return texts


def _choices(task: Task, row: Row, prompt: str) -> tuple[str, ...]:
    """The choices of one row as they continue the prompt."""
    if not isinstance(task.choices, str):
        texts = [fill(text, _texts(row, template_fields(text, task.where))) for text in task.choices]
        return _distinct(task, row, texts)
    value = row.field(task.choices)
    texts = _listed(value)
    if len(texts) < 2:
        raise InputError(
            f"{task.where}: {row.where}: the field {shorten(task.choices)} must hold a list of at least two choices "
            f"or lines 'A. …', got {shorten(value)}"
        )
    return _distinct(task, row, [continuing(prompt, text) for text in texts])


def _distinct(task: Task, row: Row, texts: Sequence[str]) -> tuple[str, ...]:
    """The choices; InputError if one is empty, or two are equal except for white space around them."""
    seen: set[str] = set()
    for text in map(str.strip, texts):
        if not text:
            raise InputError(f"{task.where}: {row.where} has an empty choice: remove the row or complete its choices")
        if text in seen:
            raise InputError(
                f"{task.where}: {row.where} has the choice {shorten(text)} twice, so that no answer can be told from "
                "another: remove the row or one of the two"
            )
        seen.add(text)
    return tuple(texts)


def has_distinct_choices(task: Task, row: Row) -> bool:
    """Whether all of the row's listed choices differ; for data that the user cannot correct."""
    texts = (
        [text.strip() for text in _listed(row.values.get(task.choices, []))] if isinstance(task.choices, str) else []
    )
    return len(set(texts)) == len(texts)


def _listed(value: Any) -> list[str]:
    return [str(item) for item in value] if isinstance(value, list) else lettered_lines(str(value))


def lettered_lines(text: str) -> list[str]:
    """ "A. one\\nB. two" → ["one", "two"]; a line without the next letter continues the choice before it."""
    choices: list[str] = []
    following = None
    for line in filter(None, map(str.strip, re.split(r"\r\n|\r|\n", text))):
        match = re.match(r"\(?([A-Z])[.):]\s*(.*)", line)
        if match and match[1] == (following or match[1]):
            choices.append(match[2])
            following = chr(ord(match[1]) + 1)
        elif choices:
            choices[-1] += f"\n{line}"
    return choices
