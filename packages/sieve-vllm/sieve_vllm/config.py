"""`quant_method: sieve` in vLLM: which layers of a model are pairs."""

from __future__ import annotations

from typing import Any

import torch
from vllm.model_executor.layers.linear import LinearBase, UnquantizedLinearMethod
from vllm.model_executor.layers.quantization import register_quantization_config
from vllm.model_executor.layers.quantization.base_config import QuantizationConfig, QuantizeMethodBase

from sieve_vllm.entries import Entry, entries_of, read_entries
from sieve_vllm.linear import PairLinearMethod


@register_quantization_config("sieve")
class SieveVllmConfig(QuantizationConfig):
    """What `config.json` says. Layers that it does not name, embeddings and heads among them, are vLLM's own."""

    def __init__(self, entries: dict[str, Entry]):
        super().__init__()
        self.entries = entries

    def get_name(self) -> str:
        return "sieve"

    def get_supported_act_dtypes(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16, torch.float32]

    @classmethod
    def get_min_capability(cls) -> int:
        return 70

    @staticmethod
    def get_config_filenames() -> list[str]:
        return []

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> SieveVllmConfig:
        return cls(read_entries(config))

    def get_quant_method(self, layer: torch.nn.Module, prefix: str) -> QuantizeMethodBase | None:
        if not isinstance(layer, LinearBase):
            return None
        parts = entries_of(prefix, self.packed_modules_mapping, self.entries)
        return UnquantizedLinearMethod() if parts is None else PairLinearMethod(parts)
