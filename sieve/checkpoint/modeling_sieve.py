"""Loads this folder's pruned model with torch and transformers alone, for `trust_remote_code=True` without Sieve.

    AutoModelForCausalLM.from_pretrained(FOLDER, trust_remote_code=True)

It is for inference: plain torch products, and the model cannot be saved. Where Sieve is installed, Sieve loads it.
Sieve has copied this file into the folder. Apache-2.0.
"""

import re

import torch
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.quantizers import auto
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

_WEIGHTS = re.compile(r"[\w-][\w.-]*\.safetensors(\.index\.json)?")


class PrunedModelForCausalLM:
    """What `auto_map` in config.json names; it returns a model of the architecture's own class."""

    @classmethod
    def register_for_auto_class(cls, auto_class="AutoModelForCausalLM"):
        """Nothing: transformers asks every class for this."""

    @classmethod
    def from_pretrained(cls, folder, *args, **options):
        auto.AUTO_QUANTIZATION_CONFIG_MAPPING.setdefault("sieve", PrunedConfig)
        auto.AUTO_QUANTIZER_MAPPING.setdefault("sieve", PrunedQuantizer)
        return AutoModelForCausalLM.from_pretrained(folder, *args, **{**options, "trust_remote_code": False})


class PrunedConfig(QuantizationConfigMixin):
    """`quantization_config` of config.json: the format of each layer that is not the architecture's own."""

    def __init__(self, layers=None, version=None, quant_method="sieve", weights=None, tensors=None, **more):
        if version != 2 or tensors is not None:
            raise ValueError(f"this file does not read {tensors or f'version {version}'}: load the model with Sieve")
        for name, entry in layers.items():
            if entry["format"] not in FORMATS:
                raise ValueError(f"{name} is stored as {entry['format']!r}: load the model with Sieve")
        if weights is not None and not _WEIGHTS.fullmatch(str(weights)):
            raise ValueError(f"{str(weights)[:80]!r} is no file of weights in the folder: config.json is damaged")
        self.layers, self.version, self.quant_method, self.weights = layers, version, quant_method, weights


class PrunedQuantizer(HfQuantizer):
    """Replaces the layers before the weights are read, as transformers lets quantizers do."""

    def update_attn_implementation(self, config):
        if self.quantization_config.weights is not None:
            config.transformers_weights = self.quantization_config.weights
        elif hasattr(config, "transformers_weights"):
            del config.transformers_weights
        return config

    update_tp_plan = update_attn_implementation  # what earlier versions call

    def _process_model_before_weight_loading(self, model, **options):
        layers = self.quantization_config.layers
        for name, entry in layers.items():
            if "members" in entry:
                stack(model, name, entry["members"])
        for name, entry in layers.items():
            path, _, child = name.rpartition(".")
            parent, kind = model.get_submodule(path), FORMATS[entry["format"]]
            layer = getattr(parent, child)
            if kind is None:
                continue
            m, n = layer.weight.shape if isinstance(layer, nn.Linear) else reversed(layer.weight.shape)
            where = {"dtype": layer.weight.dtype, "device": "meta"}
            bias = bool(layer.bias is not None or entry.get("bias"))
            if kind is nn.Linear:
                setattr(parent, child, nn.Linear(entry["inputs"], entry["outputs"], bias, **where))
                continue
            more = {"bits": entry.get("bits", 8)} if kind is QuantizedPair else {}
            setattr(parent, child, kind(n, m, entry["rank"], bias, **where, **more))
            # What a parent would initialise comes from the file; some look for a weight that is gone.
            parent._is_hf_initialized = not parent._parameters and not parent._buffers

    def is_serializable(self, *args, **options):
        raise ValueError("this model was loaded without Sieve and cannot be saved: load it with Sieve for that")

    is_trainable = True


class Pair(nn.Module):
    """y = B (A x) + bias."""

    def __init__(self, n, m, rank, bias, **where):
        super().__init__()
        self.A, self.B = nn.Linear(n, rank, bias=False, **where), nn.Linear(rank, m, bias=bias, **where)

    def forward(self, x):
        return self.B(self.A(x))


class PivotedPair(nn.Module):
    """z = A x, y[permutation] = [z, C z], plus bias."""

    def __init__(self, n, m, rank, bias, **where):
        super().__init__()
        self.A, self.C = nn.Linear(n, rank, bias=False, **where), nn.Linear(rank, m - rank, bias=False, **where)
        self.bias = nn.Parameter(torch.empty(m, **where)) if bias else None
        self.register_buffer("permutation", torch.empty(m, dtype=torch.int64, device=where["device"]))

    def forward(self, x):
        z = self.A(x)
        y = torch.cat([z, self.C(z)], -1).index_select(-1, torch.argsort(self.permutation))
        return y if self.bias is None else y + self.bias


class QuantizedPair(nn.Module):
    """A pair of integers with scales: of a row in 8 bits, of 64 columns of a row in 4 (two columns a byte, plus 8)."""

    def __init__(self, n, m, rank, bias, bits, dtype, device):
        super().__init__()
        for name, rows, columns in (("A", rank, n), ("B", m, rank)):
            q, scale = (
                ((rows, columns), (rows,)) if bits == 8 else ((rows, (columns + 1) // 2), (rows, -(-columns // 64)))
            )
            kind = torch.int8 if bits == 8 else torch.uint8
            self.register_buffer(f"{name}_q", torch.empty(q, dtype=kind, device=device))
            self.register_buffer(f"{name}_scale", torch.empty(scale, dtype=torch.float32, device=device))
        self.bias = nn.Parameter(torch.empty(m, dtype=dtype, device=device)) if bias else None

    def forward(self, x):
        z = nn.functional.linear(x, factor(self.A_q, self.A_scale, x))
        return nn.functional.linear(z, factor(self.B_q, self.B_scale, z), self.bias)


def factor(q, scale, x):
    """The matrix that integers and scales stand for, with as many columns as x has, in its dtype."""
    if q.dtype == torch.int8:
        return (q * scale.float()[:, None]).to(x.dtype)
    values = torch.stack([q & 15, q >> 4], -1).flatten(1)[:, : x.shape[-1]].float() - 8
    return (values * scale.float().repeat_interleave(64, 1)[:, : x.shape[-1]]).to(x.dtype)


class Member(nn.Module):
    """A layer that is stored in a stack with others that read the same input: its rows of the stack's output."""

    def __init__(self, parent, name, sizes, index):
        super().__init__()
        self.stack = parent, name, sizes  # in a tuple, so that the parent is no child of its child
        self.index = index

    def forward(self, x):
        # The first member to be asked computes the outputs of all; the last one leaves nothing behind.
        parent, name, sizes = self.stack
        seen, outputs = parent.__dict__.get(f"{name}_outputs") or (None, {})
        if seen is not x or self.index not in outputs:
            outputs = dict(enumerate(getattr(parent, name)(x).split(sizes, -1)))
        y = outputs.pop(self.index)
        parent.__dict__[f"{name}_outputs"] = (x, outputs) if outputs else None
        return y


def stack(model, name, members):
    """Put one layer in the place of its members, which hand out their rows of its output."""
    path, _, child = name.rpartition(".")
    parent = model.get_submodule(path)
    layers = [getattr(parent, member) for member in members]
    sizes, bias = [layer.out_features for layer in layers], any(layer.bias is not None for layer in layers)
    where = {"dtype": layers[0].weight.dtype, "device": "meta"}
    parent.add_module(child, nn.Linear(layers[0].in_features, sum(sizes), bias, **where))
    for index, member in enumerate(members):
        setattr(parent, member, Member(parent, child, sizes, index))


FORMATS = {
    "dense": None,
    "mask": None,
    "narrow": nn.Linear,
    "pair": Pair,
    "pivoted_pair": PivotedPair,
    "quantized_pair": QuantizedPair,
}
