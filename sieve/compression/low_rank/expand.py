"""Pairs multiplied out, so that a pruned and healed model can be pruned again."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import nn
from transformers import PreTrainedModel

from sieve.checkpoint.folder import write_quantization_config
from sieve.compression.plan import Plan
from sieve.models.linears import replace
from sieve.models.matrix import DENSE
from sieve.nn.low_rank import PAIRS


@torch.no_grad()
def expand_(model: PreTrainedModel) -> dict[str, int]:
    """Put a linear layer of the same map in the place of every pair, in place; returns the pairs' ranks by name.

    The map is that of the pair up to the rounding of its products to the model's dtype.
    """
    pairs = {name: layer for name, layer in model.named_modules() if isinstance(layer, PAIRS)}
    for name, pair in pairs.items():
        replace(model, name, _multiplied_out(pair))
    write_quantization_config(model)
    return {name: pair.rank for name, pair in pairs.items()}


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
    made = nn.Linear(pair.in_features, pair.out_features, has_bias, device=like.device, dtype=like.dtype)
    made.weight.copy_((product - bias).T)
    if has_bias:
        made.bias.copy_(bias)
    return made.train(pair.training)
