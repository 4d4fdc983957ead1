"""A model's decoder: its blocks, and a forward pass without the output head."""

from typing import Any

import torch
from torch import nn

from sieve.errors import InputError


def decoder_blocks(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """The dotted name of the ModuleList of decoder blocks, and the list: the outermost one of the configured length.

    A list in the part that reads text goes before others, such as an image encoder's.

    Raises: InputError where there is none.
    """
    config = model.config.get_text_config(decoder=True) if getattr(model, "config", None) is not None else None
    # Where both are there, a block holds several layers.
    counts = [getattr(config, key, None) for key in ("num_hidden_layers", "num_layers")]
    lists = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else None
    inside = set(decoder.modules()) if isinstance(decoder, nn.Module) else set()
    for name, module in sorted(lists, key=lambda pair: pair[1] not in inside):
        if len(module) in counts:
            return name, module
    raise InputError(
        f"{type(model).__name__} has nothing to prune: found no list of {counts[0]} decoder blocks; "
        "Sieve prunes transformers' AutoModelForCausalLM models"
    )


def run_decoder(model: nn.Module, ids: torch.Tensor, mask: torch.Tensor) -> Any:
    """One forward pass over ids [B, T] with attention mask [B, T], without the head and its logits and without a cache.

    Both are moved to the model's device. Returns what the decoder returns.
    """
    ids, mask = ids.to(model.device), mask.to(model.device)
    if model.device.type != "meta":
        return model.base_model(input_ids=ids, attention_mask=mask, use_cache=False)
    # A model of shapes alone has no mask that could be looked at: it gets one that is ready, or none.
    rows, tokens = ids.shape
    try:
        whole = torch.zeros(rows, 1, tokens, tokens, dtype=model.dtype, device="meta")
        return model.base_model(input_ids=ids, attention_mask=whole, use_cache=False)
    except (RuntimeError, ValueError):
        return model.base_model(input_ids=ids, use_cache=False)
