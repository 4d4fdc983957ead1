"""A model's scores on a task's examples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from sieve.errors import InputError
from sieve.evaluation.choices import ask_choices, log_softmax, say_truncated
from sieve.evaluation.likelihood import EVERYTHING, Continuation, Sharing, cells_of_a_pass, score_copies
from sieve.evaluation.metrics import metric_function
from sieve.evaluation.shortcuts import shortcuts_for
from sieve.models.loading import check_token_ids, context_length, evaluating
from sieve.tasks import Example, Task, encode
from sieve.tasks.encoding import encode_target, fitted, windows
from sieve.utils import progress

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Scores:
    """Results of one model on N examples, in their order (of texts for perplexity, those that can be scored).

    score: float64 [N], in [0, 1]: accuracy or the task's metric; for perplexity exp(loglik), the
        geometric mean probability of a token (its mean over the examples is not the inverse of a corpus perplexity).
    loglik: float64 [N], in nats: log-likelihood of the right answer given the prompt; for perplexity that of a token,
        on average over the text.
    tokens: how many the model had to read or write, padding excluded.
    choice_logprob: float64 [N], in nats: log-likelihood of the right choice given that it is one of the choices, as
        they are judged (log softmax of what the task compares); None where there are no choices.
    written: how many tokens of answers the model wrote.
    examples: int64 [N], ascending: indices of the N scored examples among those that were given; None: all of them.
    """

    score: np.ndarray
    loglik: np.ndarray
    tokens: int
    choice_logprob: np.ndarray | None = None
    written: int = 0
    examples: np.ndarray | None = None

    @property
    def accuracy(self) -> float:
        """Mean score."""
        return float(self.score.mean())

    @property
    def mean_loglik(self) -> float:
        """Mean log-likelihood of the right answer, in nats."""
        return float(self.loglik.mean())

    @property
    def ranking_score(self) -> np.ndarray:
        """The measure that tells similar models apart, float64 [N]: `choice_logprob` if there are choices.

        Without choices it is `loglik`. The likelihood of a right choice also grows with that of the wrong ones, and
        then says nothing about the score.
        """
        return self.loglik if self.choice_logprob is None else self.choice_logprob


def concatenated(parts: Sequence[Scores]) -> Scores:
    """One model's scores on several sets of examples (rungs, splits) as on one."""
    return Scores(
        np.concatenate([part.score for part in parts]),
        np.concatenate([part.loglik for part in parts]),
        sum(part.tokens for part in parts),
        None if parts[0].choice_logprob is None else np.concatenate([part.choice_logprob for part in parts]),
        sum(part.written for part in parts),
    )


@dataclass(frozen=True)
class Prepared:
    """Examples made ready for a model, to be scored again and again as its weights change.

    run: model → scores, without gradients; the model is to be in eval mode.
    plain_tokens: tokens of all sequences, each on its own (prompts with each choice; each prior once; prompts and, once
        more, with the right answer where an answer is written, whose own tokens each model adds).
    padded_tokens: cells of those sequences in batches of `PLAIN_BATCH`, in order, padded to the longest.
    fixed_passes: whether every model runs the same forward passes over the same tokens (writing answers does not).
    largest_id: of the tokens of all sequences.
    truncated: how many examples' prompts were cut to the model's context.
    run_copies: (model, P) → scores of the P candidates that the model runs at a time (`score_copies`), or None.
    """

    run: Callable[[PreTrainedModel], Scores]
    plain_tokens: int
    padded_tokens: int
    fixed_passes: bool = True
    run_copies: Callable[[PreTrainedModel, int], list[Scores]] | None = None
    largest_id: int = 0
    truncated: int = 0


PLAIN_BATCH = 16
WINDOW = 2048
"""Tokens of a text that are scored in one piece, at most."""


def evaluate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    examples: Sequence[Example],
    batch_tokens: int | None = None,
) -> Scores:
    """Score `model` on `examples`, exactly: no sampling, no early stop, the same bits for the same arguments.

    Args:
        model: any `AutoModelForCausalLM`; left as it was.
        examples: of one split of `task`.
        batch_tokens: cells (rows × padded length) of one forward pass; memory grows with it. None: 2,048 on a CPU and
            16,384 elsewhere.

    Raises: InputError for no examples, or an answer longer than the model's context; NumericsError naming the layer
        where NaN or infinity first appears.

    Example:
        >>> scores = evaluate(model, tokenizer, task, task.splits()["test"])
        >>> scores.accuracy
        0.79
    """
    prepared = prepare(model, tokenizer, task, examples, batch_tokens)
    with evaluating(model), torch.inference_mode():
        return prepared.run(model)


def prepare(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    examples: Sequence[Example],
    batch_tokens: int | None = None,
    sharing: Sharing = EVERYTHING,
) -> Prepared:
    """Do what `evaluate` does before the model runs: render and tokenise, which does not depend on the weights.

    `sharing`: which shortcuts may be taken; they change no result. The first time, a few of the sequences are run to
    find out which of them work on this model (`sieve.evaluation.shortcuts`).
    """
    if not examples:
        raise InputError(f"{task.where}: there are no examples to evaluate: choose a split that is not empty")
    make = {"multiple_choice": _multiple_choice, "generation": _generation, "perplexity": _perplexity}[task.type]
    prepared = make(model, tokenizer, task, examples, batch_tokens or cells_of_a_pass(model.device), sharing)
    check_token_ids(model, tokenizer, prepared.largest_id)
    return prepared


def _copied(run_copies: Callable[[PreTrainedModel, int], list[Scores]], sharing: Sharing, *questions) -> Prepared:
    prepared = _prepared(lambda model: run_copies(model, 1)[0], *questions)
    return replace(prepared, run_copies=run_copies) if sharing.rows else prepared


def _prepared(
    run: Callable[[PreTrainedModel], Scores], *questions: list[list[Continuation]], fixed_passes: bool = True
) -> Prepared:
    every = [sequence.ids for asked in questions for sequences in asked for sequence in sequences]
    lengths = list(map(len, every))
    batched = [lengths[first : first + PLAIN_BATCH] for first in range(0, len(lengths), PLAIN_BATCH)]
    padded = sum(len(batch) * max(batch) for batch in batched)
    largest = max(
        (max(one.ids, default=0) for asked in questions for sequences in asked for one in sequences), default=0
    )
    return Prepared(run, sum(lengths), padded, fixed_passes, largest_id=largest)


def _multiple_choice(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    examples: Sequence[Example],
    batch_tokens: int,
    sharing: Sharing,
) -> Prepared:
    asked = ask_choices(model, tokenizer, task, examples, batch_tokens, sharing)
    right = [example.answer for example in examples]

    def run(model: PreTrainedModel, copies: int) -> list[Scores]:
        candidates, tokens = asked.run(model, copies)
        return [judge(*one, tokens) for one in candidates]

    def judge(logliks: list[np.ndarray], judged: list[np.ndarray], tokens: int) -> Scores:
        return Scores(
            score=np.array([float(values.argmax() == answer) for values, answer in zip(judged, right, strict=True)]),
            loglik=np.array([values[answer] for values, answer in zip(logliks, right, strict=True)]),
            tokens=tokens,
            choice_logprob=np.array(
                [log_softmax(values)[answer] for values, answer in zip(judged, right, strict=True)]
            ),
        )

    return replace(_copied(run, asked.sharing, asked.questions, asked.neutral), truncated=asked.truncated)


def _generation(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    examples: Sequence[Example],
    batch_tokens: int,
    sharing: Sharing,
) -> Prepared:
    # Imports much of transformers.
    from sieve.evaluation.generation import prompts_of, room_for_prompt, score_and_answer, score_answer

    # Find a missing library before the model runs.
    metric_function(task.metric, task.normalise)
    # Tokenise right answers behind their prompts, and prompts alone, within the model's context.
    targets = [encode_target(tokenizer, task, example) for example in examples]
    prompts, _ = prompts_of(model, tokenizer, task, examples)
    context, room = context_length(model), room_for_prompt(model, task)
    limits = [None if room is None else min(context + 1, room + len(ids) - start) for ids, start in targets]
    questions = [
        [Continuation(*fitted(tokenizer, task, [target], limit)[0])]
        for target, limit in zip(targets, limits, strict=True)
    ]
    truncated = sum(len(question[0].ids) < len(ids) for question, (ids, _) in zip(questions, targets, strict=True))
    say_truncated(task, truncated, context)
    sharing = shortcuts_for(model, tokenizer, questions, sharing)

    # Each model writes its own answers, so only the reading can be counted in advance.
    def run(model: PreTrainedModel) -> Scores:
        limits = task.max_new_tokens, task.stop, batch_tokens
        logliks, answers, tokens, written = score_and_answer(model, tokenizer, questions, prompts, *limits, sharing)
        return Scores(
            score=np.array(
                [
                    score_answer(answer, example.references, task.metric, task.normalise)
                    for answer, example in zip(answers, examples, strict=True)
                ]
            ),
            loglik=np.array(logliks),
            tokens=tokens,
            written=written,
        )

    prepared = _prepared(run, questions, [[Continuation(ids, 1) for ids in prompts]], fixed_passes=False)
    return replace(prepared, truncated=truncated)


def _perplexity(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    examples: Sequence[Example],
    batch_tokens: int,
    sharing: Sharing,
) -> Prepared:
    """Answers are read after their prompts; texts are read in windows of at most the context, a batch and `WINDOW`.
    Each token is scored once.

    Texts without a token to score are left out, and counted in a warning.
    """
    context = context_length(model)
    length = min(context or WINDOW, batch_tokens, WINDOW)
    asked: list[list[Continuation]] = []
    owner: list[int] = []
    # Texts without a token to score are left out.
    encoded = [encode(tokenizer, task, example, example.target) for example in examples]
    scorable = np.array([index for index, (ids, start) in enumerate(encoded) if len(ids) > start], dtype=np.int64)
    texts = [encoded[index] for index in scorable]
    few = f"{len(examples) - len(texts):,} of {len(examples):,} texts are too short to be scored"
    if not texts:
        raise InputError(f"{task.where}: {few}: give the task longer ones")
    if len(texts) < len(examples):
        progress.warn(f"{task.where}: {few} and left out")
    # Cut each text into sequences; `owner` says which text a sequence belongs to.
    truncated = 0
    for index, (ids, start) in enumerate(texts):
        if task.has_prompts:
            pieces = fitted(tokenizer, task, [(ids, start)], None if context is None else context + 1)
            truncated += len(pieces[0][0]) < len(ids)
        else:
            pieces = windows(ids, start, length)
        asked += [[Continuation(*piece)] for piece in pieces]
        owner += [index] * len(pieces)
    say_truncated(task, truncated, context)

    sharing = shortcuts_for(model, tokenizer, asked, sharing)
    # A text's score is the mean over the scored tokens of all its sequences.
    scored = np.zeros(len(texts))
    np.add.at(scored, owner, [len(ids) - start for ((ids, start),) in asked])

    def run(model: PreTrainedModel, copies: int) -> list[Scores]:
        every, tokens = score_copies(model, asked, batch_tokens, "perplexity", sharing, copies)
        total = np.zeros((copies, len(texts)))
        for sums, logliks in zip(total, every, strict=True):
            np.add.at(sums, owner, [values[0] for values in logliks])
        which = scorable if len(scorable) < len(examples) else None
        return [Scores(np.exp(sums / scored), sums / scored, tokens, examples=which) for sums in total]

    return replace(_copied(run, sharing, asked), truncated=truncated)
