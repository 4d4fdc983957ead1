"""A pruned model as the dense one of its architecture: every pair multiplied out, every stack taken apart."""

from __future__ import annotations

from copy import deepcopy
from typing import TYPE_CHECKING

import torch
from torch import nn

from sieve.checkpoint.weight_files import guard_saving_
from sieve.errors import InputError
from sieve.nn.formats.base import format_of, formats_of
from sieve.nn.stacked import member_out_features, stacks

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def why_not_dense(model: PreTrainedModel) -> str | None:
    """The reason why the architecture cannot hold the dense model; None: it can."""
    plain = architecture(model)
    for name, (_, bias) in _matrices(model, plain).items():
        if bias is not None and plain.get_submodule(name).bias is None and bias.any():
            return f"{name} has a bias, for which {type(model).__name__} has no place"
    return None


def multiply_out_(model: PreTrainedModel) -> PreTrainedModel:
    """Put W = B A in the place of every low-rank pair, a matrix in that of every member of a stack, and zeros in
    that of every channel that an MLP has lost; in place.

    Products are made in float32 (float64 for such factors) and rounded once, to the dtype of the model. What is
    left is a plain transformers model, as large as the dense one. Masked matrices stay: they are dense ones with zeros.

    Raises: InputError where the architecture has no place for a bias.
    """
    from sieve.models.linears import replace

    if (lack := why_not_dense(model)) is not None:
        raise InputError(f"the model cannot be multiplied out: {lack}")
    plain, joined = architecture(model), stacks(model)
    for name, (weight, bias) in _matrices(model, plain).items():
        layer = plain.get_submodule(name)
        # GPT-2's Conv1D stores the transposed matrix.
        stored = weight.detach() if isinstance(layer, nn.Linear) else weight.detach().T
        layer.weight = nn.Parameter(stored.contiguous())
        if layer.bias is not None:
            layer.bias = nn.Parameter(weight.new_zeros(len(weight)) if bias is None else bias.detach().clone())
        replace(model, name, layer.train(model.training))
    for name in joined:
        parent, _, child = name.rpartition(".")
        delattr(model.get_submodule(parent), child)
    if getattr(model.config, "quantization_config", None) is not None:
        del model.config.quantization_config
    guard_saving_(model, needs_sieve=False)
    return model


@torch.no_grad()
def _matrices(model: PreTrainedModel, plain: PreTrainedModel) -> dict[str, tuple[torch.Tensor, torch.Tensor | None]]:
    """Name of each matrix that is not dense in the model → W [m, n] and bias [m], as `plain` has them."""
    from sieve.models.widen import widened

    found, members, heights = widened(model, plain), stacks(model), member_out_features(model)
    for name in {**formats_of(model), **members}:
        if name in found:
            continue
        # Factors are multiplied in at least float32, and rounded once.
        layer = model.get_submodule(name)
        format = format_of(layer)
        if format is None:
            weight, bias = layer.weight, layer.bias
        else:
            A, B, bias = format.factors(layer)
            wide = torch.promote_types(A.dtype, torch.float32)
            weight = (B.to(wide) @ A.to(wide)).to(model.dtype)
        if name not in members:
            found[name] = weight, bias
            continue
        # A stack's rows are those of its members, one after the other.
        parent = name.rpartition(".")[0]
        rows = weight.split(heights[name])
        parts = [None] * len(rows) if bias is None else bias.split(heights[name])
        found |= {
            f"{parent}.{member}": (own.clone(), part)
            for member, own, part in zip(members[name], rows, parts, strict=True)
        }
    return found


def architecture(model: PreTrainedModel) -> PreTrainedModel:
    """The unpruned architecture, without weights."""
    config = deepcopy(model.config)
    if getattr(config, "quantization_config", None) is not None:
        del config.quantization_config
    with torch.device("meta"):
        return type(model)(config)
