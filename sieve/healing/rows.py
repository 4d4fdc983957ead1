"""Questions packed into rows for healing, so that a prompt is run once for all its choices.

A row holds the prompt and, behind it, every choice at the positions that it would have alone; a block mask lets a
choice see the prompt and itself. The last token of a choice is only predicted, never run.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from sieve.evaluation.generation import greedy_answers
from sieve.models.loading import context_length
from sieve.tasks import Example, Task, encode
from sieve.tasks.encoding import encode_choices, encode_target, fitted, windows
from sieve.tasks.example import continuing

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Largest rows × tokens of one forward pass; a step with more takes several passes.
CELLS = 4096
# Most predicted tokens of one forward pass: each has logits over the whole vocabulary.
TARGETS = 1024
# Tokens of a text that are read at once.
WINDOW = 512


@dataclass(frozen=True)
class Question:
    """Token ids of a prompt and of the texts that may follow it.

    prompt: at least one token. endings: each of at least one token.
    scale: factor of each ending's log-likelihood, as the task compares them.
    neutral: the prompt without content, whose endings' log-likelihoods are subtracted (`normalize: prior`); else empty.
    neutral_endings: the same texts, as they follow the neutral prompt.
    choices: whether the endings are compared with one another; if not, there is one ending and each token counts.
    """

    prompt: tuple[int, ...]
    endings: tuple[tuple[int, ...], ...]
    scale: tuple[float, ...]
    neutral: tuple[int, ...] = ()
    neutral_endings: tuple[tuple[int, ...], ...] = ()
    choices: bool = True

    @property
    def targets(self) -> int:
        """Number of predicted tokens."""
        return sum(map(len, self.endings))

    @property
    def length(self) -> int:
        """Number of tokens in its row."""
        return len(self.prompt) + self.targets - len(self.endings)


@dataclass(frozen=True)
class Packed:
    """Sequences ready for one forward pass.

    ids, positions: int64 [B, T]; mask: of the model's dtype [B, 1, T, T], added to attention scores; positions and mask
    are None where every sequence has a row of its own and padding stands on the right.
    cells: int64 [N, 2], row and position that predict each target; targets: int64 [N]; owners: int64 [N], the number of
    the ending that a target belongs to.
    """

    ids: torch.Tensor
    positions: torch.Tensor | None
    mask: torch.Tensor | None
    cells: torch.Tensor
    targets: torch.Tensor
    owners: torch.Tensor
    endings: int


def questions_of(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    examples: Sequence[Example],
    labels: bool = False,
) -> list[Question | None]:
    """One question per example, None if it has nothing to predict; for texts one question per window.

    Args:
        model: the teacher, who writes the answers of a generation task.
        labels: use the right answers instead (the first, if there are several).
    """
    context = context_length(model)
    if not task.has_prompts:
        length = min(context or WINDOW, WINDOW)
        pieces = [windows(*encode(tokenizer, task, one, one.target), length) for one in examples]
        return [question for found in pieces for question in ([_text(*piece) for piece in found] or [None])]
    limit = None if context is None else context + 1
    if task.type == "multiple_choice":
        return [_choices(tokenizer, task, one, limit) for one in examples]
    if task.type == "perplexity":
        targets = [encode_target(tokenizer, task, one) for one in examples]
        return [_text(*fitted(tokenizer, task, [target], limit)[0]) for target in targets]
    if labels:
        return [_answer(tokenizer, task, one, one.references[0], limit) for one in examples]
    room = None if context is None else context - task.max_new_tokens
    prompts = [fitted(tokenizer, task, [encode(tokenizer, task, one, "")], room)[0][0] for one in examples]
    answers, _ = greedy_answers(model, tokenizer, prompts, task.max_new_tokens, task.stop, CELLS)
    return [_answer(tokenizer, task, one, text, limit) for one, text in zip(examples, answers, strict=True)]


def _choices(tokenizer: PreTrainedTokenizerBase, task: Task, example: Example, limit: int | None) -> Question | None:
    def split(prompt: str) -> tuple[tuple[int, ...], tuple[tuple[int, ...], ...]]:
        encoded = fitted(tokenizer, task, encode_choices(tokenizer, task, prompt, example.choices), limit)
        ids, start = encoded[0]
        return tuple(ids[:start]), tuple(tuple(ids[start:]) for ids, start in encoded)

    prompt, endings = split(example.prompt)
    if not all(endings):
        return None
    lengths = [max(len(text.strip()), 1) if task.normalize == "length" else 1 for text in example.choices]
    # Multiply by the mean length, so that sums keep their scale when they are divided by each choice's length.
    usual = sum(lengths) / len(lengths)
    neutral = split(example.neutral) if task.normalize == "prior" else ((), ())
    return Question(prompt, endings, tuple(usual / length for length in lengths), *neutral)


def _answer(
    tokenizer: PreTrainedTokenizerBase, task: Task, example: Example, text: str, limit: int | None
) -> Question | None:
    """The question of an answer, with the text or token that ends it."""
    written = continuing(example.prompt, text) + (task.stop or "")
    ids, start = fitted(tokenizer, task, [encode(tokenizer, task, example, written)], limit)[0]
    ended = [tokenizer.eos_token_id] if not task.stop and tokenizer.eos_token_id is not None else []
    return _text([*ids, *ended][:limit], start)


def _text(ids: Sequence[int], start: int) -> Question | None:
    return Question(tuple(ids[:start]), (tuple(ids[start:]),), (1.0,), choices=False) if len(ids) > start else None


def in_passes(questions: Sequence[Question]) -> Iterator[list[int]]:
    """The numbers of the questions for each forward pass; questions of similar length go together."""
    order = sorted(range(len(questions)), key=lambda number: questions[number].length)
    rows: list[int] = []
    targets = 0
    for number in order:
        one = questions[number]
        if rows and ((len(rows) + 1) * one.length > CELLS or targets + one.targets > TARGETS):
            yield rows
            rows, targets = [], 0
        rows.append(number)
        targets += one.targets
    if rows:
        yield rows


def pack(rows: Sequence[tuple[Sequence[int], Sequence[Sequence[int]]]], together: bool, dtype: torch.dtype) -> Packed:
    """Prompts and their endings as one batch: endings of a prompt in one row, or (`together` false) each in its own.

    Args: rows: (prompt, endings). dtype: of the mask.
    """
    if not together:
        rows = [(prompt, [ending]) for prompt, endings in rows for ending in endings]
    # A row holds the prompt and its endings; their last tokens are predicted, but never read.
    lengths = [len(prompt) + sum(len(ending) - 1 for ending in endings) for prompt, endings in rows]
    longest = max(lengths)
    ids, positions = torch.zeros(2, len(rows), longest, dtype=torch.int64)
    seen = torch.eye(longest, dtype=torch.bool).repeat(len(rows), 1, 1)
    cells, targets, owners, number = [], [], [], 0
    for row, (prompt, endings) in enumerate(rows):
        # The prompt comes first, with ordinary causal attention.
        end = length = len(prompt)
        ids[row, :length] = torch.tensor(prompt)
        positions[row, :length] = torch.arange(length)
        seen[row, :length, :length] = torch.ones(length, length, dtype=torch.bool).tril()
        for ending in endings:
            # Each ending sees the prompt and itself, at the positions that it would have alone behind the prompt.
            run = len(ending) - 1
            own = slice(end, end + run)
            ids[row, own] = torch.tensor(ending[:-1], dtype=torch.int64)
            positions[row, own] = torch.arange(length, length + run)
            seen[row, own, :length] = True
            seen[row, own, own] = torch.ones(run, run, dtype=torch.bool).tril()
            # The prompt's last token predicts an ending's first token; each ending token predicts the next one.
            cells += [(row, length - 1), *((row, end + place) for place in range(run))]
            targets += ending
            owners += [number] * len(ending)
            end, number = end + run, number + 1
    numbers = [torch.tensor(values, dtype=torch.int64) for values in (cells, targets, owners)]
    if not together:
        return Packed(ids, None, None, *numbers, number)
    mask = torch.zeros(len(rows), 1, longest, longest, dtype=dtype)
    return Packed(ids, positions, mask.masked_fill_(~seen[:, None], torch.finfo(dtype).min), *numbers, number)
