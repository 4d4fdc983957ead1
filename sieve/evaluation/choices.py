"""Log-likelihoods of a question's choices, as they are and as the task compares them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sieve.errors import InputError
from sieve.evaluation.likelihood import EVERYTHING, Continuation, Sharing, score_copies
from sieve.evaluation.shortcuts import shortcuts_for
from sieve.models.loading import context_length
from sieve.tasks import Example, Task
from sieve.tasks.encoding import encode_choices, fitted
from sieve.utils import progress
from sieve.utils.messages import shorten

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ChoiceLogliks = tuple[list[np.ndarray], list[np.ndarray]]
"""Two float64 arrays [choices] per example, in nats: log-likelihoods as they are, and as the task compares them."""


@dataclass(frozen=True)
class AskedChoices:
    """Questions with their choices, tokenised for a model; right answers are not needed.

    questions: each prompt with each of its choices. neutral: prompts without content, for `normalize: prior`.
    places: neutral prompt → choice → its place among the choices that are asked after it.
    truncated: how many prompts were cut to the model's context.
    sharing: the shortcuts that the model allows.
    """

    task: Task
    examples: Sequence[Example]
    questions: list[list[Continuation]]
    neutral: list[list[Continuation]]
    places: dict[str, dict[str, int]]
    truncated: int
    sharing: Sharing
    batch_tokens: int

    def run(self, model: PreTrainedModel, copies: int = 1) -> tuple[list[ChoiceLogliks], int]:
        """Log-likelihoods by each candidate that the model runs at a time, and the tokens that one of them ran."""
        logliks, tokens = score_copies(
            model, self.questions, self.batch_tokens, "multiple choice", self.sharing, copies
        )
        priors, more = [{}] * copies, 0
        if self.neutral:
            found, more = score_copies(model, self.neutral, self.batch_tokens, "prior", self.sharing, copies)
            priors = [dict(zip(self.places, values, strict=True)) for values in found]
        raw = [[np.asarray(values) for values in one] for one in logliks]
        return [(one, self._judged(one, prior)) for one, prior in zip(raw, priors, strict=True)], tokens + more

    def _judged(self, raw: list[np.ndarray], priors: dict[str, list[float]]) -> list[np.ndarray]:
        asked = list(zip(raw, self.examples, strict=True))
        # Per character, as lm-eval's acc_norm does, so that the score does not depend on the tokenizer.
        if self.task.normalize == "length":
            return [values / [max(len(text.strip()), 1) for text in one.choices] for values, one in asked]
        if self.task.normalize == "prior":
            return [
                values - [priors[one.neutral][self.places[one.neutral][text]] for text in one.choices]
                for values, one in asked
            ]
        return raw


def ask_choices(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    examples: Sequence[Example],
    batch_tokens: int,
    sharing: Sharing = EVERYTHING,
) -> AskedChoices:
    """The examples of a multiple-choice task, ready for the model.

    Raises: InputError for choices of the same tokens, or one that is longer than the model's context.
    """
    questions = _encoded(tokenizer, task, ((example.prompt, example.choices) for example in examples))
    for question, example in zip(questions, examples, strict=True):
        _check_choices(question, example, task)
    questions, truncated = _fitted(model, tokenizer, task, questions)
    say_truncated(task, truncated, context_length(model))
    places = _neutral_choices(examples) if task.normalize == "prior" else {}
    neutral = _encoded(tokenizer, task, ((prompt, list(texts)) for prompt, texts in places.items()))
    neutral, _ = _fitted(model, tokenizer, task, neutral)
    sharing = shortcuts_for(model, tokenizer, questions, sharing)
    return AskedChoices(task, examples, questions, neutral, places, truncated, sharing, batch_tokens)


def log_softmax(values: np.ndarray) -> np.ndarray:
    """Log-probabilities of choices, given that one of them is right, from what is compared; float64 [choices]."""
    return values - np.logaddexp.reduce(values)


def say_truncated(task: Task, truncated: int, context: int | None) -> None:
    if truncated:
        lost = "beginnings" if task.truncate == "left" else "middles"
        progress.note_once(f"{truncated} prompts are longer than the model's {context} tokens: their {lost} are cut")


def _encoded(
    tokenizer: PreTrainedTokenizerBase, task: Task, asked: Iterable[tuple[str, Sequence[str]]]
) -> list[list[Continuation]]:
    """Each prompt with each of its choices."""
    encoded = (encode_choices(tokenizer, task, prompt, texts) for prompt, texts in asked)
    return [[Continuation(*one) for one in question] for question in encoded]


def _check_choices(question: list[Continuation], example: Example, task: Task) -> None:
    """InputError for choices of the same tokens; a warning for one that goes on from another, if sums are compared."""
    start = question[0].start
    known: dict[tuple[int, ...], str] = {}
    for sequence, text in zip(question, example.choices, strict=True):
        ids = tuple(sequence.ids[start:])
        if ids in known:
            raise InputError(
                f"{task.where}: the choices {shorten(known[ids])} and {shorten(text)} after "
                f"{shorten(example.prompt[-60:])} are the same tokens to this model: remove one of them"
            )
        known[ids] = text
    if task.normalize != "none":
        return
    for ids, text in known.items():
        shorter = next((known[ids[:end]] for end in range(len(ids)) if ids[:end] in known), None)
        if shorter is not None:
            progress.warn(
                f"{task.where}: the choice {shorten(text.strip())} begins with the choice {shorten(shorter.strip())} "
                "and so can never be the likelier one: use normalize: length"
            )
            return


def _neutral_choices(examples: Sequence[Example]) -> dict[str, dict[str, int]]:
    """Neutral prompt → choice → its place among the choices that any example has after it."""
    places: dict[str, dict[str, int]] = {}
    for example in examples:
        known = places.setdefault(example.neutral, {})
        for text in example.choices:
            known.setdefault(text, len(known))
    return places


def _fitted(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, task: Task, questions: list[list[Continuation]]
) -> tuple[list[list[Continuation]], int]:
    """Questions within the model's context, and how many prompts were cut for that."""
    context = context_length(model)
    # One token more than the context: the last token is scored, but never read.
    limit = None if context is None else context + 1
    short = [[Continuation(*one) for one in fitted(tokenizer, task, question, limit)] for question in questions]
    return short, sum(len(one[0].ids) < len(two[0].ids) for one, two in zip(short, questions, strict=True))
