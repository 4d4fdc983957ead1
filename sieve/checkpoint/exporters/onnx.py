"""A folder with an ONNX graph that reads and writes its key-value cache, for onnxruntime and tools based on it.

Pairs stay pairs: the graph is as small as the model. Inputs are `input_ids` [batch, length], `attention_mask` [batch,
past + length] (0 on padding, on either side) and `past_key_values.{i}.key` and `.value` [batch, heads, past, head_dim];
outputs `logits` [batch, length, vocabulary] and `present.{i}.key` and `.value`. All three sizes are free, past from 0.
"""

from __future__ import annotations

import importlib.util
import inspect
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from sieve.checkpoint.exporters.base import Exporter
from sieve.errors import InputError
from sieve.nn.low_rank import PivotedLinear
from sieve.nn.patching import replace_forward, replaced_by, restore_forward
from sieve.utils.files import write_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

FILE = "model.onnx"
_OPSET = 18
# Sizes of the example input: none is 0 or 1, because torch.export would treat these as constants.
_BATCH, _PAST, _LENGTH = 2, 5, 3


def lacks(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Why the model cannot be exported as such a graph; None: it can."""
    missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if missing:
        return f"{' and '.join(missing)} are not installed; run: pip install {' '.join(missing)}"
    if "position_ids" not in inspect.signature(type(model).forward).parameters:
        return f"{type(model).__name__} takes no positions: padding on the left would move them"
    text = model.config.get_text_config(decoder=True)
    kinds = set(getattr(text, "layer_types", None) or ()) - {"full_attention"}
    window = getattr(text, "sliding_window", None) if getattr(text, "use_sliding_window", True) else None
    if kinds or (window and window < text.max_position_embeddings):
        return f"its attention is not full everywhere ({', '.join(sorted(kinds)) or f'a window of {window} tokens'})"
    if getattr(text, "num_experts", None) or getattr(text, "num_local_experts", None):
        return "it is a mixture of experts, whose routing the graph would freeze"
    return None


@torch.no_grad()
def export(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, source: Path, output: Path) -> None:
    """Export; float16 stays, other dtypes become float32: onnxruntime has few operators for bfloat16 on CPUs."""
    if model.dtype is not torch.float16:
        model.float()
    _plain_(model)
    # An example input with padding on the left and a cache that already holds tokens.
    layers, heads, key_dim, value_dim = _cache_shape(model)
    caches = [f"past_key_values.{layer}.{part}" for layer in range(layers) for part in ("key", "value")]
    ids = torch.arange(3, 3 + _BATCH * _LENGTH).reshape(_BATCH, _LENGTH)
    mask = torch.ones(_BATCH, _PAST + _LENGTH, dtype=torch.int64)
    mask[0, 0] = 0
    past = [
        torch.zeros(_BATCH, heads, _PAST, value_dim if name.endswith("value") else key_dim, dtype=model.dtype)
        for name in caches
    ]
    # These sizes stay free; the mask's length follows from two others, so torch finds it.
    batch, length, before = (torch.export.Dim(name) for name in ("batch", "length", "past"))
    shapes = ({0: batch, 1: length}, {0: batch, 1: torch.export.Dim.AUTO}, [{0: batch, 2: before}] * len(past))
    with warnings.catch_warnings(), _quiet():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            _WithCache(model), (ids, mask, past), str(output / FILE), dynamo=True, opset_version=_OPSET,
            input_names=["input_ids", "attention_mask", *caches],
            output_names=["logits", *(name.replace("past_key_values", "present") for name in caches)],
            dynamic_shapes=shapes, external_data=True, verbose=False,
        )  # fmt: skip
    # Tools read the model's sizes from its configuration; the graph has no Sieve layers any more.
    config = {key: value for key, value in model.config.to_dict().items() if key != "quantization_config"}
    write_json(output / "config.json", config)
    tokenizer.save_pretrained(output)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence torch's exporter, which lists missing optional packages on every run."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


class _WithCache(nn.Module):
    """The model as a function of tensors. Positions are counted from the mask, so padding does not shift them."""

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model = model

    def forward(self, ids: torch.Tensor, mask: torch.Tensor, past: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        from transformers import DynamicCache

        length, total = ids.shape[1], past[0].shape[2] + ids.shape[1]
        positions = (mask.cumsum(1) - 1).clamp(min=0)[:, total - length :]
        places = torch.arange(total, device=ids.device)
        seen = (places[None] <= places[total - length :, None])[None, None] & (mask[:, None, None] > 0)
        hidden = torch.finfo(self.model.dtype).min
        bias = torch.where(seen, 0.0, hidden).to(self.model.dtype)
        cache = DynamicCache()
        for layer in range(len(past) // 2):
            cache.update(past[2 * layer], past[2 * layer + 1], layer)
        logits = self.model(
            input_ids=ids, attention_mask=bias, position_ids=positions, past_key_values=cache, use_cache=True
        ).logits
        return logits, *(tensor for layer in cache.layers for tensor in (layer.keys, layer.values))


def _cache_shape(model: PreTrainedModel) -> tuple[int, int, int, int]:
    """Layers, heads, and the width of keys and values in the cache that the model makes."""
    ids = torch.zeros(1, 2, dtype=torch.int64, device=model.device)
    cache = model(input_ids=ids, use_cache=True).past_key_values
    shapes = {(tuple(layer.keys.shape[1:]), tuple(layer.values.shape[1:])) for layer in cache.layers}
    if len(shapes) != 1:
        raise InputError(f"cannot export a {type(model).__name__} to onnx: its layers have caches of several shapes")
    keys, values = shapes.pop()
    return len(cache.layers), keys[0], keys[2], values[2]


def _plain_(model: nn.Module) -> None:
    """Make every module use torch's operators only; pivoted pairs gather outputs by a stored inverse permutation."""
    for module in model.modules():
        if replaced_by(module) is not None:
            restore_forward(module)
        if isinstance(module, PivotedLinear):
            module.register_buffer("inverse", torch.argsort(module.permutation), persistent=False)
            replace_forward(module, _pivoted)
        elif hasattr(module, "tensors"):
            replace_forward(module, _pair)
    model.set_attn_implementation("eager")


def _pivoted(pair: PivotedLinear, x: torch.Tensor) -> torch.Tensor:
    z = nn.functional.linear(x, pair.A.weight)
    y = torch.cat([z, nn.functional.linear(z, pair.C.weight)], -1).index_select(-1, pair.inverse)
    return y if pair.bias is None else y + pair.bias


def _pair(pair: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return nn.functional.linear(nn.functional.linear(x, pair.A.weight), pair.B.weight, pair.B.bias)


EXPORTER = Exporter("an ONNX graph with a key-value cache, in a folder with the tokenizer", export, lacks)
