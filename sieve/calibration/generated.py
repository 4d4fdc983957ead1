"""Text that the dense model generates itself, to calibrate with beside the task's rows.

A task's calibration rows show little of what the model knows, and what they do not show is lost first. After a few of
these rows the model goes on with text of its own about the like; no row of another split is read. A model's own text is
also what its Fisher matrix is defined by: gradients of its log-likelihood there need no right answers.
"""

import random
from collections.abc import Sequence

import torch
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from sieve.calibration.text import Sample
from sieve.evaluation.generation import end_tokens, only, padding_token, until_end
from sieve.models.loading import evaluating
from sieve.utils import progress

LENGTH = 96
"""Tokens that are generated after one prompt …"""

ROWS = 4
"""… which is so many rows of the task, one a line …"""

_PROMPT = 64
"""… cut to its last tokens, so that all prompts are of one length and need no padding."""

# Texts at a time at most: a step of few rows costs nearly as much as one of many.
_BATCH = 128
# Among so many of the likeliest tokens each is drawn.
_TOP = 50
# Shorter texts say too little.
_SHORTEST = 9


class SampleTop(LogitsProcessor):
    """Makes greedy decoding a sample among the `count` likeliest tokens.

    With Gumbel noise on log-probabilities the largest is a draw from their softmax. The sampling of `generate` draws
    noise for the whole vocabulary, which takes a quarter of its time for a small model.
    """

    def __init__(self, count: int):
        self.count = count

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Logits [B, vocabulary] → the same with noise on the likeliest, and -inf elsewhere."""
        top, tokens = scores.topk(min(self.count, scores.shape[-1]))
        noise = -torch.empty_like(top).exponential_().log()
        return torch.full_like(scores, -torch.inf).scatter(1, tokens, top + noise)


@torch.no_grad()
def generate_samples(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, samples: Sequence[Sample], tokens: int, seed: int = 0
) -> list[Sample]:
    """About so many tokens of text that the model generates after these rows; equal seeds give equal texts.

    Each text is a sample without its prompt, all of it but the first token being what is to be predicted.
    """
    draw = random.Random(seed)
    ends = end_tokens(model, tokenizer)
    config = GenerationConfig(
        max_new_tokens=LENGTH, do_sample=False, num_beams=1, eos_token_id=ends or None,
        pad_token_id=padding_token(model, tokenizer, ends),
    )  # fmt: skip
    found: list[Sample] = []
    sampled = LogitsProcessorList([SampleTop(_TOP)])
    total, devices = 0, [model.device] if model.device.type == "cuda" else []
    with (
        evaluating(model),
        only(model, config),
        torch.random.fork_rng(devices=devices),
        progress.bar("generating text", tokens, "tokens") as advance,
    ):
        torch.manual_seed(seed)
        while total < tokens:
            rows = min(_BATCH, -(-(tokens - total) // LENGTH))
            prompts = [_prompt(tokenizer, samples, draw) for _ in range(rows)]
            length = min(map(len, prompts))
            ids = torch.tensor([prompt[-length:] for prompt in prompts], device=model.device)
            output = model.generate(ids, attention_mask=torch.ones_like(ids), logits_processor=sampled)
            made = [until_end(row, ends) for row in output[:, length:].tolist()]
            made = [Sample(row, 1) for row in made if len(row) >= _SHORTEST]
            if not made:
                # A model that only ends its texts has nothing to say.
                break
            found += made
            new = sum(len(sample.ids) for sample in made)
            advance(min(new, tokens - total))
            total += new
    if total < tokens:
        progress.note(f"the model generates no text after rows of the task: {total:,} of {tokens:,} tokens were made")
    return found


def _prompt(tokenizer: PreTrainedTokenizerBase, samples: Sequence[Sample], draw: random.Random) -> list[int]:
    """The last tokens of a few rows."""
    rows = draw.sample(list(samples), min(ROWS, len(samples)))
    text = "".join(f"{tokenizer.decode(row.ids, skip_special_tokens=True)}\n" for row in rows)
    return tokenizer(text, add_special_tokens=False)["input_ids"][-_PROMPT:]
