"""MLPs that have lost channels as wide as their architecture: the lost ones are zeros, and the map is the same."""

import torch
from torch import nn
from transformers import PreTrainedModel

from sieve.models.decoder import decoder_blocks
from sieve.models.linears import weight_of
from sieve.models.mlp_width import find_mlps
from sieve.nn.narrow import NarrowLinear


@torch.no_grad()
def widened(model: PreTrainedModel, plain: PreTrainedModel) -> dict[str, tuple[torch.Tensor, torch.Tensor | None]]:
    """Name of each narrow layer → W [m, n] and bias [m], of the sizes that it has in `plain`.

    plain: a model of the unpruned architecture; its weights are not read.
    """
    prefix, blocks = decoder_blocks(plain)
    mlps = [find_mlps(block, f"{prefix}.{index}") for index, block in enumerate(blocks)]
    parts = {name: count for found in mlps for writers in found.values() for name, count in writers}
    return {
        name: _padded(layer, weight_of(plain.get_submodule(name)).shape, parts.get(name, 1))
        for name, layer in model.named_modules()
        if isinstance(layer, NarrowLinear)
    }


def _padded(layer: nn.Linear, shape: torch.Size, parts: int) -> tuple[torch.Tensor, torch.Tensor | None]:
    """parts: into how many equal parts the outputs divide, each with zeros of its own."""
    weight = layer.weight.new_zeros(shape)
    bias = None if layer.bias is None else layer.bias.new_zeros(shape[0])
    for part in range(parts):
        here = slice(part * layer.out_features // parts, (part + 1) * layer.out_features // parts)
        start = part * shape[0] // parts
        there = slice(start, start + here.stop - here.start)
        weight[there, : layer.in_features] = layer.weight[here]
        if bias is not None:
            bias[there] = layer.bias[here]
    return weight, bias
