"""The link to transformers: `quantization_config` of a pruned model, and replacing its layers before weights load.

Only transformers' quantizers can replace a model's modules on the meta device, between its construction and the loading
of its weights. Nothing else of them is used here. Once loaded, a pruned model is an ordinary one: it trains, casts,
compiles and saves like any other.

This module runs in the middle of transformers' own import (see `registration`), so it imports little of it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn
from transformers.quantizers import auto
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from sieve.checkpoint import torchao
from sieve.checkpoint.brought_code import forget_code_
from sieve.checkpoint.version_1 import layers_of_version_1
from sieve.checkpoint.weight_files import ABSENT, guard_saving_, is_weight_file
from sieve.errors import InputError, StorageError
from sieve.nn.formats.base import LayerFormat, format_from_config, format_of
from sieve.nn.formats.dense import Dense
from sieve.nn.stacked import StackedOutput
from sieve.utils.messages import shorten

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

METHOD = "sieve"
VERSION = 2


class SieveConfig(QuantizationConfigMixin):
    """The entry of `config.json` for a pruned model.

    Args:
        layers: dotted name of each layer that differs from the architecture's → its entry: the name of its
            format, the format's fields and, for a stack of matrices that read one input (`sieve.share_inputs_`),
            `members`, the names of these matrices. Or → a `LayerFormat`.
        stacks: dotted name of each stack → its members, if `layers` does not say it.
        version: of this format. Version 1, which had other keys, is read too.
        weights: the file of the weights, or the index of several, if it is not transformers' own. It says where they
            were read from, and is not written again.
        tensors: "torchao" where torchao's tensors are stored: other readers can refuse them; ours sees it in the files.
        more: keys of later versions of Sieve; they are ignored, since readers must not need them.

    Raises: InputError for another version, an unknown format, or values that no layer can have.
    """

    def __init__(
        self,
        layers: Mapping[str, Any] | None = None,
        version: int = VERSION,
        quant_method: str = METHOD,
        stacks: Mapping[str, Sequence[str]] | None = None,
        weights: str | None = None,
        tensors: str | None = None,
        **more: Any,
    ):
        # Bring every version that this Sieve can read to the entries of today's.
        if version == 1 and type(version) is int:
            layers = layers_of_version_1(more)
        elif version != VERSION or type(version) is not int:
            raise InputError(
                f"this model was saved in Sieve's format {shorten(version)} and this Sieve reads formats up to "
                f"{VERSION}: install the version of Sieve that saved it"
            )
        if not isinstance(layers, dict):
            raise InputError(
                f"config.json is damaged: quantization_config.layers must map names, got {shorten(layers)}"
            )
        if weights is not None and not is_weight_file(weights):
            raise InputError(
                f"config.json is damaged: quantization_config.weights must be a file in the folder, got "
                f"{shorten(weights)}"
            )
        # Read the entries; config.json may be damaged or edited, so every error names the layer.
        self.quant_method, self.version, self.weights = quant_method, VERSION, weights
        self.tensors = tensors
        # A TorchAoConfig that the program has given to `from_pretrained`; it is not written.
        self.quantize: Any = None
        self.layers: dict[str, LayerFormat] = {}
        self.stacks = {name: list(members) for name, members in (stacks or {}).items()}
        for name, entry in layers.items():
            try:
                self.layers[name], members = (entry, None) if isinstance(entry, LayerFormat) else _read(entry)
            except InputError as error:
                raise InputError(
                    f"config.json is damaged, or of a later Sieve: layer {shorten(name, 120)}: {error}"
                ) from None
            if members is not None:
                self.stacks[name] = members

    @property
    def is_pruned(self) -> bool:
        """Whether any layer is not dense."""
        return any(not isinstance(format, Dense) for format in self.layers.values())

    def to_dict(self) -> dict[str, Any]:
        """The entry for `config.json`."""
        layers = {name: format.to_config() for name, format in self.layers.items()}
        for name, members in self.stacks.items():
            layers[name] = {**layers.get(name, Dense().to_config()), "members": members}
        more = {} if self.tensors is None else {"tensors": self.tensors}
        return {"quant_method": self.quant_method, "version": self.version, "layers": layers, **more}

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        yield from self.to_dict().items()


def _read(entry: Any) -> tuple[LayerFormat, list[str] | None]:
    """The format of a layer and, for a stack, the names of its members."""
    values = dict(entry) if isinstance(entry, Mapping) else entry
    members = values.pop("members", None) if isinstance(values, dict) else None
    named = isinstance(members, list) and len(members) > 1 and all(isinstance(one, str) for one in members)
    if members is not None and not named:
        raise InputError(f"its members must be the names of two matrices or more, got {shorten(members)}")
    return format_from_config(values), members


class SieveQuantizer(HfQuantizer):
    """Replaces every layer that the configuration names by a module of its format."""

    # Only models that `sieve.apply_` made can be loaded this way.
    requires_calibration = True

    quantization_config: SieveConfig
    torchao: HfQuantizer | None = None
    """What reads the weights, where torchao has quantised them."""

    @property
    def serialized_names(self) -> dict[str, list[str]]:
        return {} if self.torchao is None else self.torchao.serialized_names

    def get_weight_conversions(self) -> list[Any]:
        return [] if self.torchao is None else self.torchao.get_weight_conversions()

    def update_attn_implementation(self, config: PreTrainedConfig) -> PreTrainedConfig:
        """Tell transformers the file of the weights; it calls this before it looks for them."""
        if self.quantization_config.weights is not None:
            config.transformers_weights = self.quantization_config.weights
        elif getattr(config, "transformers_weights", None) == ABSENT:
            del config.transformers_weights
        return config

    # Earlier versions (5.17) call this method instead.
    update_tp_plan = update_attn_implementation

    def _process_model_before_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> None:
        from sieve.models.linears import layer_in, replace
        from sieve.nn.stacked import stack_
        from sieve.utils.checksums import verify

        # Check the weights before they are read.
        files = kwargs.get("checkpoint_files") or []
        for folder in {Path(file).parent for file in files}:
            verify(folder)
        self.torchao = torchao.reader(files, self.quantization_config)
        config = self.quantization_config
        # Make stacks first, because `layers` names them too.
        stack_(model, {_local(name, model): members for name, members in config.stacks.items()})
        for name, format in config.layers.items():
            name = _local(name, model)
            try:
                layer = model.get_submodule(name)
                made = layer_in(format, layer, "meta")
                if made is not layer:
                    replace(model, name, made)
                    _skip_initialisation(model.get_submodule(name.rpartition(".")[0]))
            except InputError as error:
                raise InputError(f"config.json is damaged: layer {shorten(name, 120)}: {error}") from None
            except (AttributeError, ValueError):
                # There is no such module, or it has no weight with rows and columns.
                raise InputError(
                    f"config.json gives a format to {shorten(name, 120)}, no linear layer of {type(model).__name__}: "
                    "this folder mixes the files of different models; save the model again"
                ) from None

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> PreTrainedModel:
        from sieve.nn.fuse import fuse_

        _check_tensors(model)
        torchao.settle_(model)
        if (wanted := self.quantization_config.quantize) is not None:
            torchao.quantize_loaded_(model, wanted)
            self.quantization_config.quantize = None
        guard_saving_(model, needs_sieve(model))
        if hasattr(model.config, "transformers_weights"):
            del model.config.transformers_weights
        forget_code_(model.config)
        # Remove every mark, so that transformers forbids nothing for this model …
        self.remove_quantization_config(model)
        del model.config._is_quantized
        # … but `save_pretrained` needs the configuration.
        model.config.quantization_config = self.quantization_config
        return fuse_(model)

    def is_serializable(self, safe_serialization: bool | None = None) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return True


def register() -> None:
    """Put our classes into transformers' tables; call it again after a reload, which makes new classes."""
    auto.AUTO_QUANTIZATION_CONFIG_MAPPING[METHOD] = SieveConfig
    auto.AUTO_QUANTIZER_MAPPING[METHOD] = SieveQuantizer
    if not hasattr(auto.AutoHfQuantizer.merge_quantization_configs, "sieve"):
        merge = _merging(auto.AutoHfQuantizer.merge_quantization_configs)
        auto.AutoHfQuantizer.merge_quantization_configs = staticmethod(merge)


def _merging(original: Callable[..., Any]) -> Callable[..., Any]:
    """Transformers' `merge_quantization_configs`, which also takes a TorchAoConfig for a pruned model."""

    @functools.wraps(original)
    def merge(present: Any, given: Any, *args: Any, **kwargs: Any) -> Any:
        saved_by = present.get("quant_method") if isinstance(present, dict) else getattr(present, "quant_method", None)
        if saved_by != METHOD or given is None or getattr(given, "quant_method", None) == METHOD:
            return original(present, given, *args, **kwargs)
        if type(given).__name__ != "TorchAoConfig":
            raise InputError(
                f"a pruned model cannot be quantised by {type(given).__name__} while it loads: give a TorchAoConfig, "
                "or use `sieve.quantize_`, `sieve prune --quantize int8`"
            )
        config = original(present, None, *args, **kwargs)
        config.quantize = given
        return config

    merge.sieve = True
    return merge


register()


def needs_sieve(model: nn.Module) -> bool:
    """Whether the model has layers that transformers itself would not make, or would not find its tensors for."""
    if any(format_of(layer) is not None or isinstance(layer, StackedOutput) for layer in model.modules()):
        return True
    marked = isinstance(getattr(getattr(model, "config", None), "quantization_config", None), SieveConfig)
    return marked and torchao.first_quantized(model) is not None


def _local(name: str, model: PreTrainedModel) -> str:
    """Layers are named from the causal LM; the bare decoder (`AutoModel`) lacks the first part of the name."""
    prefix = f"{model.base_model_prefix}."
    is_bare = not hasattr(model, model.base_model_prefix)
    return name.removeprefix(prefix) if is_bare else name


def _check_tensors(model: PreTrainedModel) -> None:
    """StorageError for a layer with inconsistent tensors; layers that are not loaded (meta) are skipped."""
    for name, layer in model.named_modules():
        format = format_of(layer)
        if format is None or any(tensor.is_meta for tensor in layer.buffers()):
            continue
        if (wrong := format.check(layer, name)) is not None:
            raise StorageError(
                f"the weights are damaged or lack what config.json asks for: {wrong}; copy the folder again, or save "
                "the model again"
            )


def _skip_initialisation(parent: nn.Module) -> None:
    """Keep transformers from initialising what the checkpoint will fill: GPT-2's scheme reaches for `c_proj.weight`."""
    # A parent with tensors of its own must still initialise these.
    if not parent._parameters and not parent._buffers:
        parent._is_hf_initialized = True
