"""What transformers' `save_pretrained` writes of a pruned model's weights, beyond the tensors themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from transformers.quantizers.base import HfQuantizer

from sieve.checkpoint import torchao

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Stamp(HfQuantizer):
    """What `save_pretrained` asks for the weights: torchao's tensors as plain ones, and metadata of ours."""

    def __init__(self, metadata: dict[str, str]):
        self._metadata = metadata

    def get_state_dict_and_metadata(
        self, model: PreTrainedModel
    ) -> tuple[dict[str, torch.Tensor] | None, dict[str, str]]:
        if torchao.first_quantized(model) is None:
            return None, dict(self._metadata)
        torchao.untie_(model)
        model.config.quantization_config.tensors = "torchao"
        tensors, metadata = torchao.flattened(model)
        return tensors, metadata | self._metadata

    def is_serializable(self, safe_serialization: bool | None = None) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return True
