"""The layers of vLLM in an MLP that has lost channels: plain products of fewer rows or columns."""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType

import torch
from torch import nn
from vllm.config import get_current_vllm_config_or_none
from vllm.model_executor.layers.linear import (
    ColumnParallelLinear,
    MergedColumnParallelLinear,
    QKVParallelLinear,
    RowParallelLinear,
    UnquantizedLinearMethod,
)
from vllm.model_executor.utils import set_weight_attrs

from sieve_vllm.channels import as_stored, channels_of_rank, padded
from sieve_vllm.entries import Entry
from sieve_vllm.linear import load_with_bias


class NarrowLinearMethod(UnquantizedLinearMethod):
    """vLLM's own dense layer, of the channels that are left and of zeros up to what the ranks divide.

    Channels of zeros are written as zeros and read as zeros, so the map stays the same.

    Args:
        entries: one of the whole layer, or equal ones of its parts.
    """

    def __init__(self, entries: list[Entry]):
        super().__init__()
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
        inputs, outputs = self.entries[0].inputs, sum(entry.outputs for entry in self.entries)
        parts = len(output_partition_sizes)
        _check(layer, inputs, outputs, parts)
        if isinstance(layer, RowParallelLinear):
            _set_inputs(layer, inputs)
        else:
            _set_outputs(layer, outputs // parts, parts)
            _check_adapters(layer, outputs, len(self.entries) < parts)
        # vLLM makes a bias after the weight, of the layer's sizes and with the layer's loader.
        layer.weight_loader = extra["weight_loader"] = _padding_loader(layer, inputs, outputs, parts)
        super().create_weights(
            layer,
            layer.input_size_per_partition,
            layer.output_partition_sizes,
            layer.input_size,
            layer.output_size,
            params_dtype,
            **extra,
        )
        self.bias_slot = None
        if self.entries[0].bias and not layer.has_bias:
            # vLLM passes over a bias where the architecture has none.
            bias = torch.empty(sum(layer.output_partition_sizes), dtype=params_dtype)
            self.bias_slot = nn.Parameter(bias, requires_grad=False)
            set_weight_attrs(self.bias_slot, {"output_dim": 0, "weight_loader": layer.weight_loader})
            layer.register_parameter("own_bias", self.bias_slot)
            layer.load_weights = MethodType(load_with_bias, layer)

    def apply(self, layer: nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """x [..., n] → y [..., m], of this rank."""
        y = super().apply(layer, x, bias)
        # Outputs are summed over the ranks of a layer that reads channels: one of them adds it.
        adds = self.bias_slot is not None and (layer.tp_rank == 0 or not isinstance(layer, RowParallelLinear))
        return y + layer.own_bias if adds else y


def _check(layer: nn.Module, inputs: int, outputs: int, parts: int) -> None:
    """ValueError for what no layer is, and for what this one cannot be."""
    if inputs > layer.input_size or outputs > layer.output_size or outputs % parts:
        raise ValueError(
            f"config.json gives {layer.prefix} {inputs} inputs and {outputs} outputs, and the architecture has "
            f"{layer.input_size} and {layer.output_size} there: this folder mixes the files of different models"
        )
    is_column = isinstance(layer, ColumnParallelLinear) and not isinstance(layer, QKVParallelLinear)
    may_lose_inputs, may_lose_outputs = isinstance(layer, RowParallelLinear), is_column and not layer.gather_output
    if (inputs < layer.input_size and not may_lose_inputs) or (outputs < layer.output_size and not may_lose_outputs):
        raise ValueError(
            f"{layer.prefix} has lost channels, which vLLM's {type(layer).__name__} cannot: serve the folder that "
            "`sieve export --to dense` writes"
        )


def _check_adapters(layer: nn.Module, outputs: int, is_one_matrix: bool) -> None:
    """ValueError where vLLM would put rows of an adapter into the zeros between the parts."""
    vllm_config = get_current_vllm_config_or_none()
    if is_one_matrix and layer.output_size > outputs and vllm_config is not None and vllm_config.lora_config:
        raise ValueError(
            f"the channels of {layer.prefix} do not divide by the {layer.tp_size} ranks, where adapters of a matrix of "
            "several parts are not served: choose another tensor-parallel size, or serve without adapters"
        )


def _set_inputs(layer: nn.Module, channels: int) -> None:
    """The sizes of a layer that reads so many channels; LoRA takes its own from them."""
    layer.input_size_per_partition = channels_of_rank(channels, layer.tp_size)
    layer.input_size = layer.input_size_per_partition * layer.tp_size


def _set_outputs(layer: nn.Module, channels: int, parts: int) -> None:
    """The sizes of a layer each of whose parts writes so many channels."""
    here = channels_of_rank(channels, layer.tp_size)
    layer.output_partition_sizes = [here] * parts
    layer.output_size_per_partition = here * parts
    layer.output_size = here * parts * layer.tp_size
    if isinstance(layer, MergedColumnParallelLinear):
        layer.output_sizes = [here * layer.tp_size] * parts


def _padding_loader(layer: nn.Module, inputs: int, outputs: int, parts: int) -> Callable[..., None]:
    """The layer's loader for what a checkpoint has: of a part that is named, or of all of them in one tensor."""
    load = layer.weight_loader

    def load_padded(parameter: nn.Parameter, tensor: torch.Tensor, shard: int | None = None) -> None:
        tensor = as_stored(tensor)
        if parts > 1 and shard is None:
            for index, part in enumerate(tensor.chunk(parts)):
                load_padded(parameter, part, index)
            return
        wanted = (outputs // parts, inputs)[: tensor.ndim]
        if tensor.shape != wanted:
            raise ValueError(
                f"the checkpoint has {tuple(tensor.shape)} for {layer.prefix} where config.json says {wanted}: this "
                "folder mixes the files of different models"
            )
        named = () if shard is None else (shard,)
        load(parameter, padded(tensor, layer.output_size // parts, layer.input_size), *named)

    return load_padded
