"""The identity of a calibration or journal: everything that decides its numbers, by names that error messages use.

model           every parameter
layers          the classes of all modules and their descriptions, which show an exchanged activation
buffers         every buffer, saved or not: rotary frequencies, permutations
configuration   of the model and of its generation, key by key
tokenizer       its whole state
versions        of Sieve, of transformers (which holds the models' code) and of torch (whose products are rounded as
                its version does it): a run that goes on after an update would mix two kinds of numbers
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_PACKAGES = ("sieve-pruning", "torch", "transformers")
# Keys that decide no number: where the model came from, and facts that its weights show anyway.
_VOLATILE = {"_name_or_path", "transformers_version", "architectures", "dtype", "torch_dtype"}
_TOKENIZER_SETTINGS = (
    "special_tokens_map",
    "chat_template",
    "add_bos_token",
    "add_eos_token",
    "add_prefix_space",
    "clean_up_tokenization_spaces",
    "split_special_tokens",
)


def identity_of(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Name → a digest or a mapping, of what JSON can hold."""
    generation = getattr(model, "generation_config", None)
    return {
        "model": model_fingerprint(model),
        "layers": _digest([f"{name} {type(module)} {module.extra_repr()}" for name, module in model.named_modules()]),
        "buffers": tensors_digest(_buffers(model)),
        "configuration": {
            **_plain(model.config.to_dict()),
            "attention": str(getattr(model.config, "_attn_implementation", None)),
            "generation": _plain(generation.to_dict()) if generation else None,
        },
        "tokenizer": tokenizer_fingerprint(tokenizer),
        "versions": {name: metadata.version(name) for name in _PACKAGES},
    }


def differences(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Names of the parts in which two identities differ; if a few keys of a mapping differ, with these keys."""
    names = []
    for name in {**found, **wanted}:
        one, other = found.get(name), wanted.get(name)
        if one == other:
            continue
        if name != "recipe" and isinstance(one, dict) and isinstance(other, dict):
            keys = [key for key in {**one, **other} if one.get(key) != other.get(key)]
            name += f" ({', '.join(keys[:3])}{', …' if keys[3:] else ''})"
        names.append(name)
    return names


def model_fingerprint(model: nn.Module) -> str:
    """SHA-256 (hex) over every parameter's name, shape, dtype and contents; tied parameters count once."""
    return tensors_digest(dict(model.named_parameters()))


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 (hex) of a tokenizer's whole state, except the padding and cutting that its last call set."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        # The version and the last call's settings come first: cut them off as text, since parsing the JSON is slow.
        text = backend.to_str()
        state = hashlib.sha256(text[max(text.find('"added_tokens"'), 0) :].encode()).hexdigest()
    else:
        with tempfile.TemporaryDirectory() as folder:
            tokenizer.save_pretrained(folder)
            files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
            state = [(file.name, hashlib.sha256(file.read_bytes()).hexdigest()) for file in files]
    return _digest([state, {name: getattr(tokenizer, name, None) for name in _TOKENIZER_SETTINGS}])


def tensors_digest(tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 (hex) over every tensor's name, shape, dtype and contents, in the order that they have."""
    # Threads are enough: hashing releases the GIL.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        digests = pool.map(_content_digest, tensors.values())
        total = hashlib.sha256()
        for (name, tensor), digest in zip(tensors.items(), digests, strict=True):
            total.update(f"{name} {tuple(tensor.shape)} {tensor.dtype} {digest}\n".encode())
    return total.hexdigest()


def _buffers(model: nn.Module) -> dict[str, torch.Tensor]:
    """All buffers; rotary frequencies that depend on the last input's length are replaced by their original values."""
    buffers = {}
    for name, buffer in model.named_buffers():
        parent, _, leaf = name.rpartition(".")
        if leaf.endswith("inv_freq") and "original" not in leaf:
            buffer = getattr(model.get_submodule(parent), leaf.replace("inv_freq", "original_inv_freq"), buffer)
        buffers[name] = buffer
    return buffers


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values as JSON will return them, without volatile keys."""
    read = json.loads(json.dumps(values, default=str))
    return _without_volatile(read)


def _without_volatile(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_volatile(one) for key, one in value.items() if key not in _VOLATILE}
    if isinstance(value, list):
        return [_without_volatile(one) for one in value]
    # JSON has no infinity, and Mamba 2's configuration has one.
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def _content_digest(tensor: torch.Tensor) -> str:
    data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return hashlib.sha256(data.numpy()).hexdigest()
