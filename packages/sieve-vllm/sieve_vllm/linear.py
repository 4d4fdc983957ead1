"""The layers of vLLM that hold pairs: what a checkpoint fills, and what they compute."""

from __future__ import annotations

from collections.abc import Iterable
from types import MethodType

import torch
from torch import nn
from vllm.distributed import tensor_model_parallel_all_reduce
from vllm.model_executor.layers.linear import (
    LinearMethodBase,
    MergedColumnParallelLinear,
    QKVParallelLinear,
    ReplicatedLinear,
    RowParallelLinear,
)

from sieve_kernels import lowrank_linear, lowrank_linear_pivoted
from sieve_vllm.channels import as_stored
from sieve_vllm.entries import Entry
from sieve_vllm.parts import Part, pivoted_rows, rows_of_rank

_SLOTS = ("A", "B", "C")  # the factors' modules, as the checkpoint names them


class PairLinearMethod(LinearMethodBase):
    """A layer some of whose parts are pairs.

    The checkpoint's tensors are kept whole, by the part that they are for, until all are there. Then each rank takes
    its rows, and the first factors of all parts become one.

    Args:
        entries: one of the whole layer, as of a stack or of a layer of one part, or one of each part.
    """

    def __init__(self, entries: list[Entry]):
        self.entries = entries

    def create_weights(
        self,
        layer: nn.Module,
        input_size_per_partition: int,
        output_partition_sizes: list[int],
        input_size: int,
        output_size: int,
        params_dtype: torch.dtype,
        **extra,
    ) -> None:
        self.sizes, self.input_size, self.dtype = output_partition_sizes, input_size_per_partition, params_dtype
        for name in _SLOTS:
            factor = nn.Module()
            factor.register_parameter("weight", _slot(params_dtype))
            layer.add_module(name, factor)
        layer.B.register_parameter("bias", _slot(params_dtype))
        layer.register_parameter("permutation", _slot(torch.int64))
        layer.register_parameter("weight", _slot(params_dtype))
        self.bias_slot = None
        if any(entry.bias for entry in self.entries) and not layer.has_bias:
            # vLLM passes over a bias where the architecture has none.
            self.bias_slot = _slot(params_dtype)
            layer.load_weights = MethodType(load_with_bias, layer)

    @torch.no_grad()
    def process_weights_after_loading(self, layer: nn.Module) -> None:
        device = layer.A.weight.device
        parts, firsts, start = [], [], 0
        for key, entry, rows in self._parts(layer):
            part, first = self._part(layer, key, entry, rows, device)
            if part.bias is not None and layer.has_bias:  # a plain pair's, which stands with the pair in the checkpoint
                layer.bias[start : start + len(rows)] = part.bias
                part.bias = None
            start += len(rows)
            parts.append(part)
            if first is not None:
                firsts.append(first.to(device))
        for name in (*_SLOTS, "permutation", "weight"):
            delattr(layer, name)
        self.parts, self.ranks = parts, [len(first) for first in firsts]
        layer.register_parameter("first", nn.Parameter(torch.cat(firsts).contiguous(), requires_grad=False))
        # What LoRA asks for its place, kind and shape; it takes the memory of one number.
        layer.weight = torch.zeros(1, dtype=self.dtype, device=device).expand(sum(self.sizes), self.input_size)
        self.reduces = (
            isinstance(layer, RowParallelLinear)
            and layer.tp_size > 1
            and layer.reduce_results
            and sum(self.ranks) < sum(self.sizes)
        )
        if self.reduces:
            layer.reduce_results = False  # z is summed over the ranks instead of y
        elif isinstance(layer, RowParallelLinear) and layer.tp_rank > 0:
            parts[0].bias = None  # outputs are summed over the ranks: one of them adds it
        # One pair whose rows are all here: our operators serve it.
        self.whole = self.entries[0].format if len(self.entries) == 1 and layer.tp_size == 1 else None
        self.permutation = torch.argsort(parts[0].index) if self.whole == "pivoted_pair" else None

    def apply(self, layer: nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """x [..., n] → y [..., m], of this rank."""
        if self.reduces:
            z = tensor_model_parallel_all_reduce(nn.functional.linear(x, layer.first))
            bias = None if layer.skip_bias_add else layer.bias  # vLLM gives it to the first rank alone
            y = self.parts[0](x, z)
        elif self.whole is not None:
            return self._apply_whole(layer, x, bias)
        else:
            z = iter(nn.functional.linear(x, layer.first).split(self.ranks, -1))
            outputs = [part(x, next(z) if part.rank else None) for part in self.parts]
            y = outputs[0] if len(outputs) == 1 else torch.cat(outputs, -1)
        return y if bias is None else y + bias

    def _parts(self, layer: nn.Module) -> list[tuple[str | int | None, Entry, torch.Tensor]]:
        """Of each stored part: the name that vLLM loads it by, its entry, and its rows on this rank."""
        totals, shards = _splits(layer, self.sizes)
        rows = [rows_of_rank(*one) for one in zip(totals, self.sizes, shards, strict=True)]
        if len(self.entries) == 1:
            starts = [sum(totals[:index]) for index in range(len(totals))]
            whole = torch.cat([start + own for start, own in zip(starts, rows, strict=True)])
            return [(None, self.entries[0], whole)]
        keys = ["q", "k", "v"] if isinstance(layer, QKVParallelLinear) else list(range(len(rows)))
        if len(self.entries) != len(rows):
            raise ValueError(f"{layer.prefix} has {len(rows)} parts, and the model says {len(self.entries)}")
        return list(zip(keys, self.entries, rows, strict=True))

    def _part(
        self, layer: nn.Module, key: str | int | None, entry: Entry, rows: torch.Tensor, device: torch.device
    ) -> tuple[Part, torch.Tensor | None]:
        """The part, and its A [r, n of this rank]."""

        def stored(slot: nn.Parameter, what: str) -> torch.Tensor:
            if key not in slot.shards:
                raise ValueError(f"the checkpoint has no {what} for {layer.prefix} ({key}): save the model again")
            return slot.shards[key]

        if not entry.is_pair:
            return Part(0, _columns(layer, stored(layer.weight, "weight"))[rows].to(device)), None
        A = _columns(layer, stored(layer.A.weight, "A.weight"))
        bias = layer.B.bias.shards.get(key)
        if self.bias_slot is not None:
            bias = self.bias_slot.shards.get(key, bias)
        if entry.bias and bias is None and not layer.has_bias:
            raise ValueError(f"the checkpoint has no bias for {layer.prefix} ({key}): save the model again")
        bias = None if bias is None else bias[rows].to(device)
        if entry.format == "pair":
            return Part(entry.rank, stored(layer.B.weight, "B.weight")[rows].contiguous().to(device), None, bias), A
        C, permutation = stored(layer.C.weight, "C.weight"), stored(layer.permutation, "permutation")
        C, index = pivoted_rows(C, permutation, rows)
        return Part(entry.rank, C.to(device), index.to(device), bias), A

    def _apply_whole(self, layer: nn.Module, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        part = self.parts[0]
        if part.bias is not None:
            bias = part.bias if bias is None else bias + part.bias
        if self.whole == "pair":
            return lowrank_linear(x, layer.first, part.weight, bias)
        return lowrank_linear_pivoted(x, layer.first, part.weight, self.permutation, bias)


def _slot(dtype: torch.dtype) -> nn.Parameter:
    """A parameter that keeps what a checkpoint has for it, by part, whatever its shape."""
    slot = nn.Parameter(torch.empty(0, dtype=dtype), requires_grad=False)
    slot.shards = {}

    def load(parameter: nn.Parameter, tensor: torch.Tensor, shard: str | int | None = None) -> None:
        slot.shards[shard] = as_stored(tensor).to(dtype, copy=True)

    slot.weight_loader = load
    return slot


def load_with_bias(layer: nn.Module, weights: Iterable[tuple[str, torch.Tensor]]) -> Iterable[str]:
    """In the place of a layer's `load_weights`: also a bias that vLLM has no parameter for."""
    for name, tensor in weights:
        shard = getattr(tensor, "shard_id", None)
        path, _, leaf = name.rpartition(".")
        slot = layer.quant_method.bias_slot if name == "bias" else getattr(layer.get_submodule(path), leaf)
        slot.weight_loader(slot, tensor, shard)
        yield name


def _columns(layer: nn.Module, weight: torch.Tensor) -> torch.Tensor:
    """Of [r, n] the columns of the inputs that this rank reads."""
    if not isinstance(layer, RowParallelLinear):
        return weight
    here = weight.shape[1] // layer.tp_size
    return weight[:, layer.tp_rank * here : (layer.tp_rank + 1) * here].contiguous()


def _splits(layer: nn.Module, sizes: list[int]) -> tuple[list[int], list[int]]:
    """Of each part of the layer: its outputs on all ranks, and the place of this rank's among them."""
    if isinstance(layer, QKVParallelLinear):
        heads, shared = layer.total_num_heads, layer.total_num_kv_heads
        totals = [heads * layer.head_size, shared * layer.head_size, shared * layer.v_head_size]
        replica = layer.tp_rank // layer.num_kv_head_replicas
        return totals, [layer.tp_rank, replica, replica]
    if isinstance(layer, RowParallelLinear | ReplicatedLinear):
        return list(sizes), [0] * len(sizes)
    totals = list(layer.output_sizes) if isinstance(layer, MergedColumnParallelLinear) else [
        size * layer.tp_size for size in sizes
    ]  # fmt: skip
    return totals, [layer.tp_rank] * len(sizes)
