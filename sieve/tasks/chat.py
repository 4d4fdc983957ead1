"""Conversations: how data writes them, which of their turns are answers, and how a chat template renders them.

Every answer is rendered on its own, behind its earlier turns only. Templates may change earlier turns when more turns
follow (drop reasoning, move the system prompt), so the whole conversation, rendered once, would not show the prompt
that the model really had.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sieve.errors import InputError
from sieve.tasks.row import Row
from sieve.utils import progress
from sieve.utils.messages import one_line, shorten

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from sieve.tasks.task import Task

ASSISTANT = "assistant"
CONVERSATION = " conversation"
"""A field name that no data has. All turns of one conversation share its value, so that they are in one split."""
# Keys of role and text in OpenAI's messages, and in ShareGPT's conversations.
_NAMES = (("role", "content"), ("from", "value"))
# ShareGPT's names of the roles.
_ROLES = {"human": "user", "gpt": ASSISTANT}
# Templates call this function to print the date.
_DATED = "strftime_now"

Turn = tuple[str, str]
"""Role and text."""


@dataclass(frozen=True)
class ChatRow(Row):
    """One answer of a conversation: the turns before it, and its text."""

    turns: tuple[Turn, ...] = ()
    answer: str = ""


def turns_of(row: Row, name: str) -> tuple[Turn, ...]:
    """The conversation in a field: a list of {role, content} or {from, value}, or the same as JSON.

    Raises: InputError naming the row, if the field holds no conversation or a turn is not text.
    """
    value = row.values.get(name)
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            value = None
    if not isinstance(value, list | tuple) or not value or not all(isinstance(turn, Mapping) for turn in value):
        raise InputError(
            f"{row.where}: the field {shorten(name)} must hold a conversation, a list of {{role, content}}, got "
            f"{shorten(row.values.get(name))}"
        )
    return tuple(_turn(row, number, turn) for number, turn in enumerate(value, 1))


def _turn(row: Row, number: int, turn: Mapping[str, Any]) -> Turn:
    role_name, text_name = next((names for names in _NAMES if names[0] in turn), _NAMES[0])
    role, text = turn.get(role_name), turn.get(text_name)
    if isinstance(text, list | tuple) and all(map(_is_text_part, text)):
        text = "".join(part["text"] for part in text)
    if not isinstance(role, str) or not isinstance(text, str):
        raise InputError(
            f"{row.where}: turn {number} of the conversation needs a {role_name} and a text as {text_name}, got "
            f"{shorten(turn)}"
        )
    text = Row({text_name: text}, f"{row.where} turn {number}").field(text_name)
    return _ROLES.get(role, role), text


def _is_text_part(part: Any) -> bool:
    """Whether a part of a turn's content is text, and not an image or a tool call."""
    return isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part.get("text"), str)


def answers_of(task: Task, row: Row) -> list[ChatRow]:
    """The row's answers: for generation the last turn, else every turn of the assistant that follows one of the user.

    Raises: InputError where there is none.
    """
    turns = turns_of(row, task.messages)
    places = [
        place
        for place, (role, text) in enumerate(turns)
        if role == ASSISTANT and text.strip() and any(before == "user" for before, _ in turns[:place])
    ]
    if task.type == "generation":
        places = [place for place in places if place == len(turns) - 1]
    if not places:
        wanted = "end with" if task.type == "generation" else "have"
        raise InputError(
            f"{row.where}: the conversation must {wanted} an answer of the {ASSISTANT} to the user: correct it, or "
            "remove the row"
        )
    values = {**row.values, CONVERSATION: row.where}
    return [ChatRow(values, f"{row.where} turn {place + 1}", turns[:place], turns[place][1]) for place in places]


def unanswered(task: Task, row: Row) -> ChatRow:
    """The row as a question: its conversation without a final answer, if it has one."""
    turns = turns_of(row, task.messages)
    return ChatRow(row.values, row.where, turns[:-1] if turns[-1][0] == ASSISTANT and turns[1:] else turns)


def as_text(turns: Sequence[Turn]) -> str:
    """The conversation as plain text: for people, for comparing questions and for code that uses no chat template."""
    return "\n".join(f"{role}: {text}" for role, text in turns)


def as_user(prompt: str) -> tuple[Turn, ...]:
    """A conversation of this one question."""
    return (("user", prompt.strip()),)


def chat_prompt(tokenizer: PreTrainedTokenizerBase, task: Task, turns: Sequence[Turn]) -> str:
    """The conversation up to where the assistant's next turn begins, special tokens included.

    Raises: InputError where the tokenizer has no chat template, or its template refuses the conversation.
    """
    return _rendered(tokenizer, task, turns, add_generation_prompt=True)


def chat_answer(tokenizer: PreTrainedTokenizerBase, task: Task, turns: Sequence[Turn], answer: str) -> tuple[str, str]:
    """Prompt and answer as the template writes them, the end of the turn included.

    Raises: InputError as of `chat_prompt`, or where the template does not write the answer behind its prompt.
    """
    prompt = chat_prompt(tokenizer, task, turns)
    whole = _rendered(tokenizer, task, [*turns, (ASSISTANT, answer)], add_generation_prompt=False)
    if not whole.startswith(prompt):
        # Some templates begin a new answer differently from one that was given before, as with the start of reasoning.
        before = _rendered(tokenizer, task, turns, add_generation_prompt=False)
        place = whole.find(answer.strip(), len(before)) if whole.startswith(before) else -1
        if place < 0:
            raise InputError(
                f"{task.where}: the chat template of this model does not write an answer behind its prompt: use "
                "another template, or prompt and answer fields without chat"
            )
        prompt = whole[:place]
    return prompt, whole[len(prompt) :].rstrip()


def _rendered(
    tokenizer: PreTrainedTokenizerBase, task: Task, turns: Sequence[Turn], add_generation_prompt: bool
) -> str:
    if not tokenizer.chat_template:
        key = "messages need one: write prompt and answer fields" if task.messages else "set chat: false"
        raise InputError(f"{task.where}: chat is true, but the model's tokenizer has no chat template: {key}")
    if _DATED in str(tokenizer.chat_template):
        progress.note_once(
            "the model's chat template prints the day: prompts, and perhaps scores, change from one day to the next"
        )
    messages = [{"role": role, "content": text} for role, text in turns]
    try:
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=add_generation_prompt)
    except Exception as error:
        # A template's author decides what it raises.
        raise InputError(
            f"{task.where}: the model's chat template refuses a conversation: {one_line(error)} "
            f"({shorten(as_text(turns))})"
        ) from error
