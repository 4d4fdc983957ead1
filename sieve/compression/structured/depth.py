"""Removing whole decoder blocks: those that change the hidden states least on the calibration data."""

import torch
from torch import nn
from transformers import PreTrainedModel

from sieve.calibration.statistics import Statistics
from sieve.calibration.text import Batch, batches
from sieve.errors import InputError
from sieve.models.blockwise import BlockwiseRunner
from sieve.models.decoder import decoder_blocks, run_decoder
from sieve.models.linears import replace
from sieve.models.loading import evaluating
from sieve.utils.messages import shorten

MEASURES = ("influence", "angular")
_BATCH_TOKENS = 2048  # cells of a batch: the states between all blocks are kept at once


@torch.no_grad()
def drop_blocks_(model: PreTrainedModel, statistics: Statistics, kept: float, measure: str = "influence") -> list[int]:
    """Remove blocks until at most the fraction `kept` of them is left, at least one; in place.

    The result is a plain transformers model with fewer layers: it saves and loads like any other.

    Args:
        statistics: of any method; their texts are run once.
        kept: in (0, 1].
        measure: as in `choose_blocks`.

    Returns: the indices of the blocks that went, ascending.
    """
    name, blocks = decoder_blocks(model)
    if not 0 < kept <= 1:
        raise InputError(f"the kept fraction must be in (0, 1], got {kept}")
    count = len(blocks) - max(1, int(kept * len(blocks) + 1e-9))
    gone = choose_blocks(model, statistics, count, measure)
    left = [index for index in range(len(blocks)) if index not in gone]
    for place, index in enumerate(left):
        for module in blocks[index].modules():
            if hasattr(module, "layer_idx"):  # the layer of the KV cache
                module.layer_idx = place
    replace(model, name, nn.ModuleList(blocks[index] for index in left))
    config = model.config.get_text_config(decoder=True)
    if getattr(config, "layer_types", None):
        config.layer_types = [config.layer_types[index] for index in left]
    config.num_hidden_layers = len(left)
    return gone


@torch.no_grad()
def choose_blocks(model: PreTrainedModel, statistics: Statistics, count: int, measure: str = "influence") -> list[int]:
    """The `count` blocks that matter least, ascending.

    measure:
        "influence": the blocks of least 1 - E cos(h_i, h_{i+1}) over all tokens, h_i entering block i: the block
            influence of ShortGPT (arXiv 2403.03853).
        "angular": the `count` blocks in a row of least E arccos(cos(h_i, h_{i+count})) / π over the last tokens of the
            examples: Gromov et al. (arXiv 2403.17887).
    """
    if measure not in MEASURES:
        raise InputError(f"unknown measure {shorten(measure)}: choose one of {', '.join(MEASURES)}")
    if not statistics.samples:
        raise InputError("the statistics hold no calibration examples: calibrate again")
    if not count:
        return []
    # Each start is compared with the state one block later, or `count` blocks later.
    _, blocks = decoder_blocks(model)
    starts = range(len(blocks) if measure == "influence" else len(blocks) - count + 1)
    step = 1 if measure == "influence" else count
    total = torch.zeros(len(starts), dtype=torch.float64)
    for batch in batches(statistics.samples, _BATCH_TOKENS):
        states = _states(model, batch)
        for start in starts:
            if measure == "influence":
                rows = batch.mask.bool()
            else:
                rows = torch.arange(batch.mask.shape[1]) == batch.mask.sum(1, keepdim=True) - 1
            one, other = (states[at][rows.to(states[at].device)].double() for at in (start, start + step))
            cosine = nn.functional.cosine_similarity(one, other, dim=-1)
            distance = 1 - cosine if measure == "influence" else cosine.clamp(-1, 1).arccos() / torch.pi
            total[start] += distance.sum().cpu()
    # Single blocks anywhere, or neighbours.
    if measure == "influence":
        return sorted(total.argsort(stable=True)[:count].tolist())
    first = int(total.argmin())
    return list(range(first, first + count))


def _states(model: PreTrainedModel, batch: Batch) -> list[torch.Tensor]:
    """Hidden states [B, T, d] entering block 0 and leaving every block."""
    with evaluating(model), BlockwiseRunner(model) as runner:
        every = range(len(runner) + 1)
        _, trace = runner.run(lambda: run_decoder(model, batch.ids, batch.mask), keep=every)
    return [trace.states[block][0] for block in every]
