"""Removing channels of the MLPs: those of the smallest activations on the calibration data."""

import math

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from sieve.calibration.statistics import Statistics
from sieve.errors import InputError
from sieve.models.decoder import decoder_blocks
from sieve.models.linears import prunable
from sieve.models.mlp_width import find_mlps

_SIZES = ("intermediate_size", "n_inner", "ffn_dim")  # what configurations call the number of channels


@torch.no_grad()
def drop_channels_(model: PreTrainedModel, statistics: Statistics, kept: float) -> int:
    """Remove MLP channels until at most the fraction `kept` of the prunable parameters is left; in place.

    Every block loses the same number of channels, those with the smallest Σ x² on entering the last matrix of the MLP
    (the activation-based importance of neurons in Minitron, arXiv 2407.14679). Attention stays as it is. The result is
    a plain transformers model with a smaller `intermediate_size`.

    Args:
        statistics: of any method that sums over the data.
        kept: in (0, 1].

    Returns: how many channels each MLP is left with.

    Raises: InputError where the MLPs are of an unknown kind, or hold less than what is to be removed.
    """
    if not 0 < kept <= 1:
        raise InputError(f"the kept fraction must be in (0, 1], got {kept}")
    prefix, blocks = decoder_blocks(model)
    # How much each channel of each MLP is used.
    mlps = [_mlp(block, f"{prefix}.{index}") for index, block in enumerate(blocks)]
    config = model.config.get_text_config(decoder=True)
    size = next((name for name in _SIZES if getattr(config, name, None)), None)
    scores = []
    for name, _, _ in mlps:
        source = statistics.sources.get(name)
        if source is None or source.inputs not in statistics.sums:
            raise InputError(f"the statistics hold no sums of the inputs of {name}: calibrate this model first")
        scores.append(statistics.sums[source.inputs][2])
    # How many channels must go from each MLP so that the fraction is kept.
    channels = {len(score) for score in scores}
    if size is None or len(channels) > 1:
        raise InputError(f"the MLPs of {type(model).__name__} are of an unknown kind or of different widths")
    width = channels.pop()
    total = sum(matrix.parameters for matrix in prunable(model).values())
    each = (
        sum(reader.weight.numel() + sum(w.weight.numel() for w, _ in writers) for _, reader, writers in mlps) // width
    )
    left = width - math.ceil(round((1 - kept) * total / each, 6))
    if left < 1:
        raise InputError(f"the MLPs hold only {each * width / total:.0%} of the parameters: keep more than that leaves")
    # Take the least used ones out, of all layers that hold them.
    for (_, reader, writers), score in zip(mlps, scores, strict=True):
        chosen = score.topk(left).indices.sort().values
        _take(reader, chosen, inputs=True)
        for writer, parts in writers:
            _take(writer, torch.cat([chosen + part * width for part in range(parts)]), inputs=False)
    setattr(config, size, left)
    return left


def _mlp(block: nn.Module, prefix: str) -> tuple[str, nn.Module, list[tuple[nn.Module, int]]]:
    """The block's matrix that reads the channels, with its name, and those that write them, with their parts."""
    for name, found in find_mlps(block, prefix).items():
        layer, *writers = (block.get_submodule(one.removeprefix(f"{prefix}.")) for one in (name, *dict(found)))
        if isinstance(layer, nn.Linear | Conv1D):
            return name, layer, list(zip(writers, dict(found).values(), strict=True))
    raise InputError(f"{prefix} holds no MLP of a known kind: its channels cannot be removed")


def _take(layer: nn.Module, chosen: torch.Tensor, inputs: bool) -> None:
    """Keep the chosen input or output channels of a layer."""
    across = 1 if inputs != isinstance(layer, Conv1D) else 0
    layer.weight = nn.Parameter(layer.weight.detach().index_select(across, chosen), layer.weight.requires_grad)
    if not inputs and layer.bias is not None:
        layer.bias = nn.Parameter(layer.bias.detach()[chosen], layer.bias.requires_grad)
    if isinstance(layer, Conv1D):
        layer.nx, layer.nf = layer.weight.shape
    else:
        layer.out_features, layer.in_features = layer.weight.shape
