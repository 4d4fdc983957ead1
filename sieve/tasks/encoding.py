"""Text → token ids, with the place where the scored part begins."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sieve.errors import InputError
from sieve.tasks.example import Example

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from sieve.tasks.task import Task


def encode(
    tokenizer: PreTrainedTokenizerBase, task: Task, example: Example, continuation: str
) -> tuple[list[int], int]:
    """Token ids of the example's prompt followed by `continuation`, and the index of the first scored token.

    The text is tokenised in one piece, as a user's would be. Where a token spans the border, it is scored with the
    continuation. A token always precedes the first scored one: the model's beginning-of-text token (or, where it has
    none, end-of-text) when the prompt has no token of its own.

    Args:
        task: `task.chat` wraps the prompt as a user's turn by the tokenizer's chat template; the continuation
            then opens the model's turn, without leading white space.

    Returns: ids and start, 1 ≤ start ≤ len(ids).

    Raises: InputError where chat is asked for and the tokenizer has no template.
    """
    return encode_text(tokenizer, task, example.prompt, continuation)


def encode_text(
    tokenizer: PreTrainedTokenizerBase, task: Task, prompt: str, continuation: str
) -> tuple[list[int], int]:
    """`encode` for a prompt that stands alone."""
    if task.chat:
        prompt, continuation = _chat(tokenizer, task, prompt), continuation.lstrip()
    special = not task.chat  # a chat template writes the special tokens itself
    ids = _ids(tokenizer, prompt + continuation, special)
    context = _ids(tokenizer, prompt, special)
    start = 0
    while start < min(len(ids), len(context)) and ids[start] == context[start]:
        start += 1
    if start == 0:
        first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
        return ([first, *ids], 1) if first is not None else (ids, min(1, len(ids)))
    return ids, min(start, len(ids) - 1) if continuation else start


def _ids(tokenizer: PreTrainedTokenizerBase, text: str, special: bool) -> list[int]:
    ids = tokenizer.encode(text, add_special_tokens=special)
    ended = ids and ids[-1] == tokenizer.eos_token_id and not text.endswith(tokenizer.eos_token)
    return ids[:-1] if ended else ids  # some tokenizers close every text; ours goes on


def _chat(tokenizer: PreTrainedTokenizerBase, task: Task, prompt: str) -> str:
    if not tokenizer.chat_template:
        raise InputError(f"{task.where}: chat is true, but the model's tokenizer has no chat template: set chat: false")
    messages = [{"role": "user", "content": prompt.strip()}]
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
