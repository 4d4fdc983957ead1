"""Running one token at a time, on top of caches that other passes have left, for prompts of any lengths.

Caches are padded on the left, so that all rows end at one place; a mask hides the padding, and positions are those of
each prompt alone. A row that is complete leaves at once.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import pad
from transformers.cache_utils import DynamicCache

from sieve.evaluation.likelihood import Continuation, Layers, Sharing, score

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Last tokens of a sequence that are tried.
_TRIED = 3
# (rows that are left, logits [rows, vocabulary]) → the token that each goes on with, None where it is complete
Follow = Callable[[list[int], torch.Tensor], list[int | None]]


def run_steps(model: PreTrainedModel, caches: Sequence[Layers], first: Sequence[int], follow: Follow) -> int:
    """Feed each row its `first` token, then the tokens that `follow` returns; returns the number of tokens run.

    caches: per row and layer, keys and values [heads, cached, head_dim] of the tokens before the first; may be empty.
    """
    # One cache of all rows: the mask hides the padding on the left; positions go on where each row's own cache ends.
    lengths = [layers[0][0].shape[-2] for layers in caches]
    longest = max(lengths)
    cache = DynamicCache([_stacked(layer, longest) for layer in zip(*caches, strict=True)])
    mask = torch.tensor([[0] * (longest - length) + [1] * length for length in lengths], device=model.device)
    positions = torch.tensor(lengths, device=model.device)[:, None]
    told = "position_ids" in inspect.signature(model.forward).parameters
    rows, tokens, cells = list(range(len(caches))), list(first), 0
    while rows:
        mask = torch.cat([mask, mask.new_ones(len(rows), 1)], 1)
        output = model(
            input_ids=torch.tensor(tokens, device=model.device)[:, None], attention_mask=mask, past_key_values=cache,
            use_cache=True, return_dict=True, **({"position_ids": positions} if told else {}),
        )  # fmt: skip
        cells += len(rows)
        following = follow(rows, output.logits[:, -1])
        # Rows that have ended leave the cache.
        stay = [place for place, token in enumerate(following) if token is not None]
        if 0 < len(stay) < len(rows):
            chosen = torch.tensor(stay, device=model.device)
            cache.batch_select_indices(chosen)
            mask, positions = mask[chosen], positions[chosen]
        rows, tokens, positions = [rows[place] for place in stay], [following[place] for place in stay], positions + 1
    return cells


def last_logprobs(model: PreTrainedModel, sequences: Sequence[Continuation], sharing: Sharing) -> list[list[float]]:
    """Log-probabilities of the last few tokens of each sequence, read one at a time on top of the cache of the rest."""
    lasts = [one.ids[-1 - min(_TRIED, len(one.ids) - 1) :] for one in sequences]
    caches: dict[int, Layers] = {}

    def keep(numbers: list[int], layers: Layers) -> None:
        for row, number in enumerate(numbers):
            caches[number] = row_of(layers, row, len(sequences[number].ids) - len(lasts[number]))

    score(model, [[one] for one in sequences], 1 << 20, "", sharing, keep)
    found: list[list[float]] = [[] for _ in sequences]

    def follow(rows: list[int], logits: torch.Tensor) -> list[int | None]:
        following: list[int | None] = []
        for row, values in zip(rows, logits.float(), strict=True):
            token = lasts[row][len(found[row]) + 1]
            found[row].append(float(values[token].double() - values.logsumexp(-1).double()))
            following.append(token if len(found[row]) + 1 < len(lasts[row]) else None)
        return following

    run_steps(model, [caches[number] for number in range(len(sequences))], [last[0] for last in lasts], follow)
    return found


def row_of(layers: Layers, row: int, length: int) -> Layers:
    """The first `length` cached tokens of one row: per layer keys and values [heads, length, head_dim]."""
    return [(keys[row, :, :length], values[row, :, :length]) for keys, values in layers]


def _stacked(rows: Sequence[tuple[torch.Tensor, torch.Tensor]], longest: int) -> tuple[torch.Tensor, torch.Tensor]:
    keys, values = zip(*rows, strict=True)
    return tuple(torch.stack([pad(one, (0, 0, longest - one.shape[-2], 0)) for one in many]) for many in (keys, values))
