"""Greedy answers."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

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

from sieve import progress
from sieve.errors import NumericsError
from sieve.fitness.likelihood import batches
from sieve.fitness.metrics import score_answer
from sieve.fitness.numerics import first_nonfinite
from sieve.models import embeds

__all__ = ["greedy_answers", "score_answer"]


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
    ends = model.generation_config.eos_token_id
    ends = tokenizer.eos_token_id if ends is None else ends
    ends = [] if ends is None else ends if isinstance(ends, list) else [ends]
    # A padding token that was added to the tokenizer alone has no embedding.
    pads = (token for token in (tokenizer.pad_token_id, *ends) if token is not None and embeds(model, token))
    pad = next(pads, 0)
    config = GenerationConfig(
        max_new_tokens=max_new_tokens, do_sample=False, num_beams=1, eos_token_id=ends or None, pad_token_id=pad
    )
    order = sorted(range(len(prompts)), key=lambda index: (len(prompts[index]), index))
    answers = [""] * len(prompts)
    tokens = 0
    with progress.bar("generation", len(prompts), "answers") as advance, _only(model, config):
        for span in batches([len(prompts[index]) for index in order], max_new_tokens, batch_tokens):
            batch = order[span]
            longest = len(prompts[batch[-1]])
            padding = [longest - len(prompts[index]) for index in batch]
            # On the left, so that every row goes on right after its last token.
            ids = torch.tensor([[pad] * n + prompts[index] for n, index in zip(padding, batch, strict=True)])
            mask = torch.tensor([[0] * n + [1] * (longest - n) for n in padding])
            output = model.generate(
                ids.to(model.device),
                attention_mask=mask.to(model.device),
                logits_processor=LogitsProcessorList([_RequireFinite(model)]),
                stopping_criteria=StoppingCriteriaList([_Stop(tokenizer, longest, stop)]),
            )
            for index, row in zip(batch, output[:, longest:].tolist(), strict=True):
                row = row[: next((place for place, token in enumerate(row) if token in ends), len(row))]
                text = tokenizer.decode(row, skip_special_tokens=True).lstrip()
                if stop and stop in text:
                    text = text[: text.index(stop)]
                    while row[-1] == pad:  # written by the library while other rows went on
                        row.pop()
                answers[index] = text
                tokens += len(prompts[index]) + len(row)
            advance(len(batch))
    return answers, tokens


class _Stop(StoppingCriteria):
    """Ends a row once its text, begun with something other than white space, holds `stop`."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, prompt: int, stop: str | None):
        self.tokenizer, self.prompt, self.stop = tokenizer, prompt, stop

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor | None, **_) -> torch.Tensor:
        texts = self.tokenizer.batch_decode(input_ids[:, self.prompt :]) if self.stop else [""] * len(input_ids)
        return torch.tensor([bool(self.stop) and self.stop in text.lstrip() for text in texts], device=input_ids.device)


class _RequireFinite(LogitsProcessor):
    """Lets logits through, or raises NumericsError."""

    def __init__(self, model: PreTrainedModel):
        self.model = model

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if not torch.isfinite(scores.amax(-1)).all():  # -inf alone is a forbidden token
            raise NumericsError(f"the model's output is not finite: {first_nonfinite(self.model, input_ids)}")
        return scores


@contextmanager
def _only(model: PreTrainedModel, config: GenerationConfig) -> Iterator[None]:
    """The model generates by `config` alone: its own sampling and repetition settings would not be greedy."""
    before, model.generation_config = model.generation_config, config
    try:
        yield
    finally:
        model.generation_config = before
