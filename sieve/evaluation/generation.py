"""Greedy answers.

Answers are written on top of the passes that score the right answers, so each prompt is run once for both. Models whose
cache cannot be cut to the prompt use `generate`, with prompts of one length at a time. If `generate` does not write
what the model predicts, it gets one prompt at a time; if that does not help, every token takes one full pass.
"""

import operator
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
)

from sieve.errors import InputError, NumericsError
from sieve.evaluation.generate_check import TOKENS, rows_of_generate
from sieve.evaluation.likelihood import (
    CACHED_BATCHES,
    EVERYTHING,
    Continuation,
    Layers,
    Sharing,
    batches,
    can_reuse_cache,
    length_in_common,
    score,
)
from sieve.evaluation.metrics import score_answer
from sieve.evaluation.shortcuts import shortcuts_for
from sieve.evaluation.steps import row_of, run_steps
from sieve.models.halving import in_halves
from sieve.models.loading import context_length, embeds
from sieve.models.numerics import first_nonfinite
from sieve.tasks import Example, Task, encode
from sieve.tasks.encoding import fitted
from sieve.utils import progress

__all__ = ["greedy_answers", "prompts_of", "room_for_prompt", "score_and_answer", "score_answer", "write_answers"]

# A prompt may have this many tokens beyond what it shares with its right answer; these are read one at a time. With
# more tokens left, the prompt is read in a pass of its own.
_REST = 4


def score_and_answer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Sequence[Continuation]],
    prompts: Sequence[list[int]],
    max_new_tokens: int,
    stop: str | None,
    batch_tokens: int,
    sharing: Sharing,
) -> tuple[list[float], list[str], int, int]:
    """Log-likelihoods of right answers (questions of one sequence), and the answers to the prompts; all [N].

    Returns also the number of tokens read and written, and of those written alone, padding excluded.
    """
    # Without reusable caches, scoring and writing are separate passes.
    if not (sharing.prefix and sharing.steps and can_reuse_cache(model)):
        logliks, tokens = score(model, questions, batch_tokens, "right answers", sharing)
        rows = batch_tokens if sharing.rows else 0
        answers, more = greedy_answers(model, tokenizer, prompts, max_new_tokens, stop, rows)
        return [value for (value,) in logliks], answers, tokens + more, more - sum(map(len, prompts))
    # Plan the reads: usually the right answer's pass also holds the prompt, so the prompt needs no pass of its own.
    reads = list(questions)
    # Read → numbers of the prompts that start from its cache, and how many of their tokens it holds.
    sources: defaultdict[int, list[tuple[int, int]]] = defaultdict(list)
    for number, ((target,), prompt) in enumerate(zip(questions, prompts, strict=True)):
        source, known = number, min(length_in_common((target.ids[:-1], prompt)), len(prompt) - 1)
        if len(prompt) - known > _REST:
            # Prompt and right answer were cut differently to fit the context: read this prompt by itself.
            source, known = len(reads), len(prompt) - 1
            reads.append([Continuation(prompt, known)])
        sources[source].append((number, known))
    writer = _Writer(model, tokenizer, prompts, max_new_tokens, stop, CACHED_BATCHES * batch_tokens * sharing.rows)

    def keep(numbers: list[int], layers: Layers) -> None:
        for row, read in enumerate(numbers):
            for number, known in sources[read]:
                writer.add(number, row_of(layers, row, known))

    # Score the right answers; `keep` gives each pass's cache to the writer, which writes when its memory is full.
    logliks, tokens = score(model, reads, batch_tokens, "answers", sharing, keep)
    writer.write()
    written = sum(map(len, writer.written))
    texts = [_text(tokenizer, ids, stop) for ids in writer.written]
    return [values[0] for values in logliks[: len(questions)]], texts, tokens + writer.tokens, written


def prompts_of(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, task: Task, examples: Sequence[Example]
) -> tuple[list[list[int]], int]:
    """Token ids of each prompt, cut so that the longest answer fits behind it, and how many prompts were cut.

    Raises: InputError where the model has no room for such an answer.
    """
    room = room_for_prompt(model, task)
    prompts = [encode(tokenizer, task, example, "") for example in examples]
    short = [fitted(tokenizer, task, [prompt], room)[0][0] for prompt in prompts]
    return short, sum(len(ids) < len(before) for ids, (before, _) in zip(short, prompts, strict=True))


def room_for_prompt(model: PreTrainedModel, task: Task) -> int | None:
    """The most tokens of a prompt before an answer of `task.max_new_tokens`; None where the model has no limit."""
    context = context_length(model)
    if context is not None and context <= task.max_new_tokens:
        raise InputError(f"{task.where}: max_new_tokens must be below the model's context of {context} tokens")
    return None if context is None else context - task.max_new_tokens


def write_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[list[int]],
    max_new_tokens: int,
    stop: str | None,
    batch_tokens: int,
    sharing: Sharing = EVERYTHING,
) -> list[str]:
    """The greedy answers of `score_and_answer` to prompts whose right answers are not known."""
    limits = max_new_tokens, stop, batch_tokens
    if min(map(len, prompts)) < 2:
        return greedy_answers(model, tokenizer, prompts, *limits)[0]
    # The prompt's own last token stands for the right answer: the pass that leaves its cache is the same.
    questions = [[Continuation(prompt, len(prompt) - 1)] for prompt in prompts]
    sharing = shortcuts_for(model, tokenizer, questions, sharing)
    return score_and_answer(model, tokenizer, questions, prompts, *limits, sharing)[1]


@dataclass
class _Writer:
    """Writes the answers to prompts whose beginnings are cached, as many at a time as fit into `cells` of cache."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    prompts: Sequence[list[int]]
    max_new_tokens: int
    stop: str | None
    cells: int
    tokens: int = 0
    _waiting: dict[int, Layers] = field(default_factory=dict)

    def __post_init__(self):
        self.written: list[list[int]] = [[] for _ in self.prompts]
        self._ends = end_tokens(self.model, self.tokenizer)

    def add(self, number: int, layers: Layers) -> None:
        """Queue a prompt with the cache of its first tokens; at least one token is left to be read."""
        longest = max(len(self.prompts[one]) for one in (number, *self._waiting)) + self.max_new_tokens
        if (len(self._waiting) + 1) * longest > self.cells:
            self.write()
        self._waiting[number] = layers

    def write(self) -> None:
        """Write the answers of all queued prompts."""
        if not self._waiting:
            return
        waiting = list(self._waiting.items())

        def part(first: int, end: int) -> None:
            for number, _ in waiting[first:end]:
                # Begin anew: what a pass wrote that broke off is written again.
                self.written[number] = []
            self.tokens += self._answer(dict(waiting[first:end]))

        longest = max(len(self.prompts[number]) for number in self._waiting) + self.max_new_tokens
        in_halves(self.model, len(waiting), longest, part, lambda *_: None, "writing")
        self._waiting = {}

    def _answer(self, waiting: dict[int, Layers]) -> int:
        """Write the answers to these prompts, whose beginnings are cached; the number of tokens run."""
        numbers, caches = list(waiting), list(waiting.values())
        rests = [self.prompts[number][layers[0][0].shape[-2] :] for number, layers in zip(numbers, caches, strict=True)]

        def follow(rows: list[int], logits: torch.Tensor) -> list[int | None]:
            # Only the maximum must be finite: a single -inf is a forbidden token.
            finite = torch.isfinite(logits.amax(-1)).tolist()
            for row, fine in zip(rows, finite, strict=True):
                number = numbers[row]
                if not fine:
                    ids = torch.tensor([self.prompts[number] + self.written[number]], device=self.model.device)
                    raise NumericsError(f"the model's output is not finite: {first_nonfinite(self.model, ids)}")
            best = logits.argmax(-1).tolist()
            return [
                rests[row].pop(0) if rests[row] else self._next(numbers[row], token)
                for row, token in zip(rows, best, strict=True)
            ]

        return run_steps(self.model, caches, [rest.pop(0) for rest in rests], follow)

    def _next(self, number: int, token: int) -> int | None:
        ids = self.written[number]
        if token in self._ends:
            return None
        ids.append(token)
        complete = len(ids) == self.max_new_tokens or _stopped(self.tokenizer, ids, self.stop)
        return None if complete else token


@torch.no_grad()
def greedy_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[list[int]],
    max_new_tokens: int,
    stop: str | None,
    batch_tokens: int,
) -> tuple[list[str], int]:
    """The most likely token at each step, until end-of-text, `stop` or `max_new_tokens`.

    White space at the beginning is no part of an answer: many models open with a line break.

    Returns: the texts before `stop`, and the number of tokens read and written, padding excluded.
    """
    # Configure `generate` to be greedy, with an end and a padding token that the model has.
    ends = end_tokens(model, tokenizer)
    pad = padding_token(model, tokenizer, ends)
    config = GenerationConfig(
        max_new_tokens=max_new_tokens, do_sample=False, num_beams=1, eos_token_id=ends or None, pad_token_id=pad
    )
    # Prompts of one length go together: not every model ignores padding.
    order = sorted(range(len(prompts)), key=lambda index: (len(prompts[index]), index))
    answers = [""] * len(prompts)
    tokens = 0
    with progress.bar("generation", len(prompts), "answers") as advance, only(model, config):
        # Ask how many prompts `generate` can take at a time without changing its answers; 0: none.
        able = rows_of_generate(model, prompts, lambda ids: _tried(model, ids, pad)) if prompts else 2
        if able == 0:
            return _read_again(model, tokenizer, prompts, max_new_tokens, stop, ends, advance)
        cells = batch_tokens if able > 1 else 0
        for span in batches([len(prompts[index]) for index in order], max_new_tokens, cells, padding=0):
            batch = order[span]
            length = len(prompts[batch[0]])

            def generate(first: int, end: int, batch: list[int] = batch, length: int = length) -> list[list[int]]:
                ids = torch.tensor([prompts[index] for index in batch[first:end]], device=model.device)
                output = model.generate(
                    ids,
                    attention_mask=torch.ones_like(ids),
                    logits_processor=LogitsProcessorList([_RequireFinite(model)]),
                    stopping_criteria=StoppingCriteriaList([_Stop(tokenizer, length, stop)]),
                )
                return output[:, length:].tolist()

            rows = in_halves(model, len(batch), length + max_new_tokens, generate, operator.add, "writing")
            # Cut each answer at its end, without what was written while other rows went on.
            for index, row in zip(batch, rows, strict=True):
                row = until_end(row, ends)
                if _stopped(tokenizer, row, stop):
                    # Other rows were still being written, so the library filled this one with padding.
                    while row[-1] == pad:
                        row.pop()
                answers[index] = _text(tokenizer, row, stop)
                tokens += len(prompts[index]) + len(row)
            advance(len(batch))
    return answers, tokens


def _tried(model: PreTrainedModel, ids: torch.Tensor, pad: int) -> torch.Tensor:
    """ids [rows, length] with the few tokens that `generate` writes behind them."""
    config = GenerationConfig(max_new_tokens=TOKENS, do_sample=False, num_beams=1, pad_token_id=pad)
    return model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)


def _read_again(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[list[int]],
    max_new_tokens: int,
    stop: str | None,
    ends: Sequence[int],
    advance: Callable[[int], None],
) -> tuple[list[str], int]:
    """Like `greedy_answers`, but without `generate`: the whole sequence is read again for each token."""
    answers, tokens = [], 0
    for prompt in prompts:
        written: list[int] = []
        while len(written) < max_new_tokens and not _stopped(tokenizer, written, stop):
            ids = torch.tensor([prompt + written], device=model.device)
            logits = model(input_ids=ids, use_cache=False, return_dict=True).logits[:, -1]
            token = int(_RequireFinite(model)(ids, logits).argmax())
            if token in ends:
                break
            written.append(token)
        answers.append(_text(tokenizer, written, stop))
        tokens += len(prompt) + len(written)
        advance(1)
    return answers, tokens


def end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Tokens that end an answer."""
    ends = model.generation_config.eos_token_id
    ends = tokenizer.eos_token_id if ends is None else ends
    return [] if ends is None else ends if isinstance(ends, list) else [ends]


def padding_token(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, ends: Sequence[int]) -> int:
    """A token that `generate` can fill rows with: one that the model has an embedding for."""
    # A padding token that was added to the tokenizer alone has none.
    pads = (token for token in (tokenizer.pad_token_id, *ends) if token is not None and embeds(model, token))
    return next(pads, 0)


def until_end(row: list[int], ends: Sequence[int]) -> list[int]:
    """What was written before the first token that ends an answer."""
    return row[: next((place for place, token in enumerate(row) if token in ends), len(row))]


def _stopped(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], stop: str | None) -> bool:
    """Whether the text holds `stop`, after white space at its beginning is removed."""
    return bool(stop) and stop in tokenizer.decode(ids).lstrip()


def _text(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], stop: str | None) -> str:
    """The text of these tokens before `stop`."""
    text = tokenizer.decode(ids, skip_special_tokens=True).lstrip()
    return text[: text.index(stop)] if stop and stop in text else text


class _Stop(StoppingCriteria):
    """Ends a row once it is `_stopped`."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, prompt: int, stop: str | None):
        self.tokenizer, self.prompt, self.stop = tokenizer, prompt, stop

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor | None, **_) -> torch.Tensor:
        rows = input_ids[:, self.prompt :].tolist()
        return torch.tensor([_stopped(self.tokenizer, row, self.stop) for row in rows], device=input_ids.device)


class _RequireFinite(LogitsProcessor):
    """Lets logits through, or raises NumericsError."""

    def __init__(self, model: PreTrainedModel):
        self.model = model

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        # Only the maximum must be finite: a single -inf is a forbidden token.
        if not torch.isfinite(scores.amax(-1)).all():
            raise NumericsError(f"the model's output is not finite: {first_nonfinite(self.model, input_ids)}")
        return scores


@contextmanager
def only(model: PreTrainedModel, config: GenerationConfig) -> Iterator[None]:
    """Within the block the model generates by `config` alone: its own sampling settings would not be greedy."""
    before, model.generation_config = model.generation_config, config
    try:
        yield
    finally:
        model.generation_config = before
