"""`quant_method: sieve` in vLLM: which layers of a model are pairs, and which have lost channels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from vllm.model_executor.layers.linear import LinearBase, UnquantizedLinearMethod
from vllm.model_executor.layers.quantization import register_quantization_config
from vllm.model_executor.layers.quantization.base_config import QuantizationConfig, QuantizeMethodBase

from sieve_vllm.entries import NARROW, Entry, entries_of, read_entries
from sieve_vllm.linear import PairLinearMethod
from sieve_vllm.narrow import NarrowLinearMethod

if TYPE_CHECKING:
    from vllm.model_executor.models.utils import WeightsMapper


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

    def apply_vllm_mapper(self, hf_to_vllm_mapper: WeightsMapper) -> None:
        """The names that vLLM has for the layers of this model, where it renames some."""
        self.entries = hf_to_vllm_mapper.apply_dict(self.entries)

    def get_quant_method(self, layer: torch.nn.Module, prefix: str) -> QuantizeMethodBase | None:
        if not isinstance(layer, LinearBase):
            return None
        parts = entries_of(prefix, self.packed_modules_mapping, self.entries)
        if parts is None:
            return UnquantizedLinearMethod()
        return NarrowLinearMethod(parts) if parts[0].format == NARROW else PairLinearMethod(parts)
