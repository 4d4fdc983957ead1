"""The variants of one decoder with random weights that are compared. They share all tensors that are not pruned."""

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

import torch
from torch import nn

from bench.decode import Free, TwoProducts
from bench.gpu.sizes import KEPT
from sieve.compression.plan import Plan
from sieve.models.linears import layer_in, prunable, replace
from sieve.nn.formats.pivoted_pair import pair_format
from sieve.nn.fuse import fuse_
from sieve.nn.low_rank import PAIRS

NAMES = ("dense", "two", "plain", "pivoted", "free")


@dataclass(frozen=True)
class Contestants:
    """Models by name, and the bytes of the pruned matrices of those that have pairs."""

    models: dict[str, nn.Module]
    pruned_bytes: dict[str, int]


@cache
def contestants(device: torch.device, multiple: int, configuration: tuple) -> Contestants:
    """dense; two (plain pairs as two `F.linear`); plain and pivoted (our operators); free (no prunable matrix).

    `fuse_` is called on all of them, so that norms, rotary positions, attention and head are the same. The dense
    model's prunable matrices use the library's products.
    """
    dense = random_model(device, dict(configuration))
    matrices = prunable(dense)
    plain, pivoted = (_pruned(dense, multiple, kind) for kind in (False, True))
    two, free = _sharing(plain), _sharing(dense)
    for name in matrices:
        if isinstance(two.get_submodule(name), PAIRS):
            replace(two, name, TwoProducts(two.get_submodule(name)))
        layer = free.get_submodule(name)
        replace(free, name, Free(layer.out_features, layer.weight.dtype).to(device))
    models = {name: fuse_(model) for name, model in zip(NAMES, (dense, two, plain, pivoted, free), strict=True)}
    for name in matrices:
        dense.get_submodule(name).__dict__.pop("forward", None)
    return Contestants(models, {name: _bytes(models[name], matrices) for name in ("plain", "pivoted")})


def random_model(device: torch.device, configuration: dict) -> nn.Module:
    """A bfloat16 Llama with random weights, made on the device."""
    from transformers import LlamaConfig, LlamaForCausalLM

    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with device:
            return LlamaForCausalLM(LlamaConfig(**configuration)).eval()
    finally:
        torch.set_default_dtype(before)


def _sharing(model: nn.Module) -> nn.Module:
    """A copy of the modules that shares their tensors."""
    tensors = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})


def _pruned(dense: nn.Module, multiple: int, pivoted: bool) -> nn.Module:
    """The model with half of the prunable parameters, random: the time of a product does not depend on the values."""
    model = _sharing(dense)
    plan = Plan.uniform(prunable(dense, pivoted).values(), KEPT, multiple)
    for name, rank in plan.ranks().items():
        pair = layer_in(pair_format(pivoted)(rank), model.get_submodule(name))
        for factor in pair.children():
            nn.init.normal_(factor.weight, std=factor.in_features**-0.5)
        if pivoted:
            order = torch.randperm(pair.out_features, device=pair.permutation.device)
            pair.permutation.copy_(torch.cat([order[:rank].sort().values, order[rank:].sort().values]))
        replace(model, name, pair)
    return model


def _bytes(model: nn.Module, names: Iterable[str]) -> int:
    return sum(p.nbytes for name in names for p in model.get_submodule(name).parameters())
