"""How fast a model runs on this machine: a prompt at once, then one token after the other."""

from __future__ import annotations

import inspect
import statistics
import time
from contextlib import ExitStack
from typing import Any

import torch
from transformers import PreTrainedModel

from sieve.models.loading import context_length, evaluating
from sieve.utils import progress
from sieve.utils.devices import device_failed, is_out_of_memory
from sieve.utils.messages import one_line
from sieve_kernels.core.tuning_cache import device_name

PROMPT, NEW = 128, 16
"""Tokens of the prompt, and tokens that are decoded after it."""
_ROUNDS, _SECONDS = 3, 2.0
"""At most so many rounds after the first, and no new one after so many seconds."""


def measure_speed(model: PreTrainedModel) -> dict[str, float] | None:
    """`measure_speeds` of one model."""
    found = measure_speeds(model)
    return found and found[0]


def measure_speeds(*models: PreTrainedModel) -> list[dict[str, float]] | None:
    """Seconds that one token takes: "prefill" in a prompt of 128 tokens, "decode" one at a time, at batch 1.

    Medians of a few rounds in which the models take turns, in eager mode: a few seconds for a small model, and four
    passes for a large one. None, with a note, if one of them does not decode so.
    """
    try:
        with torch.inference_mode(), ExitStack() as stack:
            for model in models:
                stack.enter_context(evaluating(model))
            prompts = [_prompt(model) for model in models]
            for model, prompt in zip(models, prompts, strict=True):
                _round(model, prompt)  # fills caches
            started, rounds = time.perf_counter(), []
            while not rounds or (len(rounds) < _ROUNDS and time.perf_counter() - started < len(models) * _SECONDS):
                rounds.append([_round(model, prompt) for model, prompt in zip(models, prompts, strict=True)])
    except Exception as error:
        if device_failed(error) and not is_out_of_memory(error):
            raise
        # Architectures differ in caches and arguments; a run must not be lost for its speed.
        progress.note(f"no speed is measured: {type(error).__name__}: {one_line(error)}")
        return None
    return [
        {name: statistics.median(one[name] for one in own) for name in ("prefill", "decode")}
        for own in zip(*rounds, strict=True)
    ]


def _prompt(model: PreTrainedModel) -> torch.Tensor:
    """Token ids [1, length], as many as the context has room for with the tokens behind them."""
    length = min(PROMPT, (context_length(model) or PROMPT + NEW) - NEW)
    rows = model.get_input_embeddings().weight.shape[0]
    return torch.arange(max(length, 1), device=model.device)[None] % rows


def speed_report(
    model: PreTrainedModel, dense: dict[str, float] | None, pruned: dict[str, float] | None
) -> dict[str, Any] | None:
    """What a report says of both models' speeds, with the machine; None unless both were measured."""
    if dense is None or pruned is None:
        return None
    return {
        "machine": device_name(model.device) or str(model.device),
        "dtype": str(model.dtype).removeprefix("torch."),
        "tokens": {"prefill": PROMPT, "decode": NEW},
        "seconds": {"dense": dense, "pruned": pruned},
    }


def _round(model: PreTrainedModel, prompt: torch.Tensor) -> dict[str, float]:
    # As `generate` does: only the last token's logits of a prompt, where the architecture can do that.
    last = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}
    start = _now(model)
    out = model(input_ids=prompt, use_cache=True, **last)
    filled = _now(model)
    for _ in range(NEW):
        token = out.logits[:, -1:].argmax(-1)
        out = model(input_ids=token, past_key_values=out.past_key_values, use_cache=True)
    return {"prefill": (filled - start) / prompt.shape[1], "decode": (_now(model) - filled) / NEW}


def _now(model: PreTrainedModel) -> float:
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
    return time.perf_counter()
