"""Pairs multiplied out, so that a pruned and healed model can be pruned again."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import nn
from transformers import PreTrainedModel

from sieve.checkpoint.folder import write_quantization_config
from sieve.checkpoint.multiply_out import architecture
from sieve.compression.plan import Plan
from sieve.models.linears import replace
from sieve.models.matrix import DENSE
from sieve.models.prunable_model import PrunableModel
from sieve.models.widen import widened
from sieve.nn.low_rank import PAIRS
from sieve.nn.narrow import NarrowLinear


@torch.no_grad()
def expand_(model: PreTrainedModel) -> dict[str, int]:
    """Put a linear layer of the same map in the place of every pair and of every narrow layer, in place.

    The map is that of the pair up to the rounding of its products to the model's dtype.

    Returns: the pairs' ranks by name, and the channels of MLPs that had lost some.
    """
    widths: dict[str, int] = {}
    if any(isinstance(layer, NarrowLinear) for layer in model.modules()):
        wide = widened(model, architecture(model))
        readers = wide.keys() & PrunableModel(model).channel_writers.keys()
        widths = {name: model.get_submodule(name).in_features for name in readers}
        for name, (weight, bias) in wide.items():
            replace(model, name, _linear(weight, bias, model.get_submodule(name)))
    pairs = {name: layer for name, layer in model.named_modules() if isinstance(layer, PAIRS)}
    for name, pair in pairs.items():
        replace(model, name, _multiplied_out(pair))
    write_quantization_config(model)
    return {name: pair.rank for name, pair in pairs.items()} | widths


def at_most(plan: Plan, ranks: Mapping[str, int]) -> Plan:
    """The plan with no rank above what a matrix had: what was multiplied out has no more to keep."""
    limited = Plan(plan, pivoted=plan.pivoted)
    for name, rank in ranks.items():
        planned = plan.get(name, DENSE)
        limited[name] = rank if planned == DENSE else min(planned, rank)
    return limited


def _multiplied_out(pair: nn.Module) -> nn.Linear:
    like = next(pair.parameters())
    wide = copy.deepcopy(pair).float()
    rows = torch.eye(pair.in_features, device=like.device)
    product = wide(rows)  # Wᵀ + bias
    bias = wide(torch.zeros(1, pair.in_features, device=like.device))[0]
    has_bias = any(name.endswith("bias") for name, _ in pair.named_parameters())
    return _linear((product - bias).T, bias if has_bias else None, pair)


def _linear(weight: torch.Tensor, bias: torch.Tensor | None, old: nn.Module) -> nn.Linear:
    """A linear layer of these values, otherwise as the old one."""
    like = next(old.parameters())
    made = nn.Linear(*weight.shape[::-1], bias is not None, device=like.device, dtype=like.dtype)
    made.weight.copy_(weight)
    if bias is not None:
        made.bias.copy_(bias)
    return made.train(old.training)
