"""The transformers side: `quantization_config` of a pruned model, and the swap of its layers before weights load.

Transformers' quantizers are the one place where a model's modules can be replaced on the meta device between its
construction and the loading of its weights; that is all that is used of them here. Once loaded, a pruned model is an
ordinary one: it trains, casts, compiles and saves like any other.

This module runs in the middle of transformers' own import (see `registration`), so it imports little of it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from sieve.errors import InputError, StorageError
from sieve.utils.messages import shorten

if TYPE_CHECKING:
    from transformers import PreTrainedModel

METHOD = "sieve"
_OF_MASKS = ("masks", "pattern")
VERSION = 1


@register_quantization_config(METHOD)
class SieveConfig(QuantizationConfigMixin):
    """What `config.json` says of a pruned model.

    Args:
        ranks: dotted name of each matrix that is a low-rank pair → its rank; a matrix that is absent is dense.
        pivoted: the pairs are stored pivoted; absent where they are not.
        biased: all pairs have a bias, also where the dense matrix had none; absent where that is not so.
        masks: dotted name of each matrix that is masked → the fraction of its weights that are kept, the others being
            stored as zeros; absent where there are none.
        shared: dotted name of each stack of matrices that read one input → its members' names beside it
            (`sieve.share_inputs_`); absent where there are none.
        pattern: of the masks: "unstructured", "2:4" or "4:8".
        version: of this format.
    """

    pivoted = False
    biased = False
    pattern = "unstructured"
    shared: ClassVar[dict[str, list[str]]] = {}

    def __init__(
        self,
        ranks: dict[str, int],
        pivoted: bool = False,
        version: int = VERSION,
        quant_method: str = METHOD,
        masks: dict[str, float] | None = None,
        pattern: str = "unstructured",
        biased: bool = False,
        shared: dict[str, list[str]] | None = None,
    ):
        if version != VERSION:
            raise InputError(
                f"this model was saved in Sieve's format {shorten(version)} and this Sieve reads format {VERSION}: "
                "install the version of Sieve that saved it"
            )
        if not isinstance(ranks, dict) or any(type(rank) is not int or rank < 1 for rank in ranks.values()):
            raise InputError("config.json is damaged: quantization_config.ranks must map matrix names to ranks of 1 up")
        for key, value in (("pivoted", pivoted), ("biased", biased)):
            if type(value) is not bool:
                raise InputError(
                    f"config.json is damaged: quantization_config.{key} must be true or false, got {shorten(value)}"
                )
        for name, kept in (masks or {}).items():
            if not isinstance(kept, float) or not 0 < kept < 1:
                raise InputError(f"config.json is damaged: it says that {name} keeps {shorten(kept)} of its weights")
        if not all(isinstance(members, list) and len(members) > 1 for members in (shared or {}).values()):
            raise InputError("config.json is damaged: quantization_config.shared must list the members of each stack")
        self.quant_method = quant_method
        self.version = version
        self.ranks = ranks
        if pivoted:
            self.pivoted = True
        if biased:
            self.biased = True
        self.masks = dict(masks or {})
        self.pattern = pattern
        if shared:
            self.shared = {name: list(members) for name, members in shared.items()}

    def to_dict(self) -> dict[str, Any]:
        """For `config.json`, without what would say nothing."""
        written = super().to_dict()
        return written if self.masks else {key: value for key, value in written.items() if key not in _OF_MASKS}


@register_quantizer(METHOD)
class SieveQuantizer(HfQuantizer):
    """Puts a `LowRankLinear` or `PivotedLinear` of the right rank wherever `ranks` names a matrix."""

    requires_calibration = True  # only a model that `sieve.apply_` made can be loaded this way

    quantization_config: SieveConfig

    def _process_model_before_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> None:
        from sieve.models.linears import low_rank, replace
        from sieve.nn.stacked import stack_
        from sieve.utils.checksums import verify

        for folder in {Path(file).parent for file in kwargs.get("checkpoint_files") or []}:
            verify(folder)
        config = self.quantization_config
        stack_(model, {_local(name, model): members for name, members in config.shared.items()})
        for name, rank in config.ranks.items():
            name = _local(name, model)
            try:
                replace(model, name, low_rank(model.get_submodule(name), rank, "meta", config.pivoted, config.biased))
                _skip_initialisation(model.get_submodule(name.rpartition(".")[0]))
            except AttributeError:  # no such module, or one without a weight of rows and columns
                raise InputError(
                    f"config.json gives a rank to {shorten(name, 120)}, no linear layer of {type(model).__name__}: "
                    "this folder mixes the files of different models; save the model again"
                ) from None

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> PreTrainedModel:
        from sieve.nn.fuse import fuse_

        _check_permutations(model)
        self.remove_quantization_config(model)  # takes off every mark, so that nothing is refused to the model …
        del model.config._is_quantized
        model.config.quantization_config = self.quantization_config  # … but `save_pretrained` needs this one
        return fuse_(model)

    def is_serializable(self, safe_serialization: bool | None = None) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return True


class Stamp(HfQuantizer):
    """What `save_pretrained` asks for metadata of the weights: beside them it changes nothing."""

    def __init__(self, metadata: dict[str, str]):
        self._metadata = metadata

    def get_state_dict_and_metadata(self, model: PreTrainedModel) -> tuple[None, dict[str, str]]:
        return None, dict(self._metadata)

    def is_serializable(self, safe_serialization: bool | None = None) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return True


def _local(name: str, model: PreTrainedModel) -> str:
    """`ranks` are named from the causal LM; the bare decoder (`AutoModel`) lacks the first part of the name."""
    prefix = f"{model.base_model_prefix}."
    is_bare = not hasattr(model, model.base_model_prefix)
    return name.removeprefix(prefix) if is_bare else name


def _check_permutations(model: PreTrainedModel) -> None:
    """StorageError for a pivoted pair whose outputs would go astray; parts that are not loaded (meta) are left out."""
    from sieve.nn.low_rank import PivotedLinear
    from sieve_kernels.lowrank.checks import is_permutation

    for name, layer in model.named_modules():
        if isinstance(layer, PivotedLinear) and not layer.permutation.is_meta:
            order = layer.permutation
            if order.dtype != torch.int64 or order.shape != (layer.out_features,) or not is_permutation(order):
                raise StorageError(
                    f"the weights are damaged or lack what config.json asks for: the permutation of {name} does not "
                    f"hold each of 0 to {layer.out_features - 1} once; copy the folder again, or save the model again"
                )


def _skip_initialisation(parent: nn.Module) -> None:
    """Keep transformers from initialising what the checkpoint will fill: GPT-2's scheme reaches for `c_proj.weight`."""
    if not parent._parameters and not parent._buffers:  # else it has something of its own to initialise
        parent._is_hf_initialized = True
