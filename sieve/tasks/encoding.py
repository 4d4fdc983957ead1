"""Text → token ids, with the place where the scored part begins."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sieve.errors import InputError
from sieve.tasks.chat import as_user, chat_answer, chat_prompt
from sieve.tasks.example import Example
from sieve.utils.messages import shorten

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from sieve.tasks.task import Task

# Token ids and start: tokens from ids[start] on are scored, 1 ≤ start ≤ len(ids).
Encoded = tuple[list[int], int]


def encode(tokenizer: PreTrainedTokenizerBase, task: Task, example: Example, continuation: str) -> Encoded:
    """Token ids of the example's prompt followed by `continuation`, and the index of the first scored token.

    The text is tokenised in one piece, as a user's would be. Where a token spans the border, it is scored with the
    continuation. A token always precedes the first scored one: the model's beginning-of-text token (or, where it has
    none, end-of-text) when the prompt has no token of its own.

    Args:
        task: `task.chat` wraps the prompt as a user's turn by the tokenizer's chat template; the continuation
            then opens the model's turn, without leading white space.

    Returns: ids and start, 1 ≤ start ≤ len(ids).

    If a conversation's answers are scored as in training (`type: perplexity`), the continuation is closed as
    the template closes a turn.

    Raises: InputError where chat is asked for and the tokenizer has no template.
    """
    if not task.is_chat:
        return encode_choices(tokenizer, task, example.prompt, [continuation])[0]
    turns = example.turns or as_user(example.prompt)
    if task.type == "perplexity" and continuation:
        text = example.references[0] if continuation == example.target else continuation.lstrip()
        prompt, text = chat_answer(tokenizer, task, turns, text)
        return _encoded(tokenizer, prompt, [text], special=False)[0]
    return _encoded(tokenizer, chat_prompt(tokenizer, task, turns), [continuation.lstrip()], special=False)[0]


def encode_choices(
    tokenizer: PreTrainedTokenizerBase, task: Task, prompt: str, choices: Sequence[str]
) -> list[Encoded]:
    """`encode` for each choice after one prompt; all are scored from the same place, the smallest start of any choice.

    After "Answer: " the token of " yes" spans the border, but "1" has its own token. From one place, both pay for the
    space. Before the start, all of them have the same tokens.
    """
    if not task.is_chat:
        return _encoded(tokenizer, prompt, choices, special=True)
    prompt = chat_prompt(tokenizer, task, as_user(prompt))
    return _encoded(tokenizer, prompt, [choice.lstrip() for choice in choices], special=False)


def _encoded(tokenizer: PreTrainedTokenizerBase, prompt: str, choices: Sequence[str], special: bool) -> list[Encoded]:
    """special: add special tokens; a chat template writes them itself."""
    # In one call: the tokenizer's Python takes longer than its work.
    context, *encoded = _ids(tokenizer, [prompt, *(prompt + choice for choice in choices)], special)
    start = min(_start(ids, context, choice) for ids, choice in zip(encoded, choices, strict=True))
    if start > 0:
        return [(ids, start) for ids in encoded]
    first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    return [([first, *ids], 1) if first is not None else (ids, min(1, len(ids))) for ids in encoded]


def encode_target(tokenizer: PreTrainedTokenizerBase, task: Task, example: Example) -> Encoded:
    """The right answer as evaluation scores it: from the same place as the other choices."""
    if not example.choices:
        return encode(tokenizer, task, example, example.target)
    return encode_choices(tokenizer, task, example.prompt, example.choices)[example.answer]


def fitted(
    tokenizer: PreTrainedTokenizerBase, task: Task, question: Sequence[Encoded], limit: int | None
) -> list[Encoded]:
    """Sequences of one question in at most `limit` tokens (None: any number): the prompt is cut if it is too long.

    `task.truncate` says where: "left" the prompt's beginning, "middle" its middle. Special tokens at the beginning and
    the scored part always stay. The same tokens are cut from all sequences, which agree in all before `start`.

    Raises: InputError where the scored part alone is too long.
    """
    excess = max(len(ids) for ids, _ in question) - limit if limit is not None else 0
    if excess <= 0:
        return list(question)
    ids, start = question[0]
    special = set(tokenizer.all_special_ids)
    first = next((place for place in range(start) if ids[place] not in special), start)
    # Tokens of the prompt that stay.
    room = start - first - excess
    if room < 0 or first + room < 1:
        text = tokenizer.decode(max(question, key=lambda one: len(one[0]))[0][start:])
        raise InputError(
            f"{task.where}: an answer is longer than the model's context of {limit - 1} tokens: remove or shorten "
            f"{shorten(text)}"
        )
    begin = first + (room // 2 if task.truncate == "middle" else 0)
    return [(ids[:begin] + ids[begin + excess :], start - excess) for ids, start in question]


def windows(ids: list[int], start: int, length: int) -> list[Encoded]:
    """A text in pieces that score at most `length` tokens each; every token from `start` on is scored in one piece."""
    return [(ids[first - 1 : first + length], 1) for first in range(start, len(ids), length)]


def _start(ids: Sequence[int], context: Sequence[int], continuation: str) -> int:
    """Number of tokens that belong to the prompt alone; at least one is left for the continuation."""
    start = 0
    while start < min(len(ids), len(context)) and ids[start] == context[start]:
        start += 1
    return min(start, len(ids) - 1) if continuation and start else start


def _ids(tokenizer: PreTrainedTokenizerBase, texts: list[str], special: bool) -> list[list[int]]:
    encoded = tokenizer(texts, add_special_tokens=special, return_attention_mask=False)["input_ids"]
    # Some tokenizers add an end token to every text; more text follows here, so drop it.
    end, written = tokenizer.eos_token_id, tokenizer.eos_token
    return [
        ids[:-1] if ids and ids[-1] == end and not text.endswith(written) else ids
        for ids, text in zip(encoded, texts, strict=True)
    ]
