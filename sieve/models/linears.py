"""A model's linear layers: which of them can be pruned, and how one is read and replaced."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from weakref import WeakKeyDictionary

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from sieve.errors import InputError, NumericsError
from sieve.models.decoder import decoder_blocks, run_decoder
from sieve.models.matrix import Matrix
from sieve.nn.formats.base import LayerFormat, format_of
from sieve.nn.low_rank import holds_plain_tensors
from sieve.utils import progress
from sieve.utils.devices import device_failed
from sieve.utils.messages import one_line

_DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
_ROWS, _TOKENS = 2, 16  # of the pass that shows how layers are used
_NEVER_CALLED = "not called in a forward pass over text"
_SOME_TOKENS = "not given one row a token, as experts of a mixture are not"
_STACKED = "several matrices in one tensor, as experts of a mixture are"
_SHARED = "its weight is also that of another layer"
_TINY = "no pair is smaller than a single row or column"
_used: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()  # by layer, why its use keeps it dense; "" if nothing


def prunable(model: nn.Module, pivoted: bool = False) -> dict[str, Matrix]:
    """The linear layers inside the model's decoder blocks that can be pruned, in the order of `named_modules`.

    `pivoted`: their pairs are to be stored pivoted, which decides what a rank costs.

    Embeddings and the output head lie outside the blocks and are left alone; fused projections
    (qkv_proj, gate_up_proj) count as the one matrix they are. Layers that are low-rank already are passed over, and so
    are those of `left_dense`.

    Raises: InputError when there is nothing to prune.
    """
    layers, left = _linear_layers(model), left_dense(model)
    matrices = {}
    for name, (layer, block) in layers.items():
        if name not in left:
            m, n = weight_of(layer).shape
            matrices[name] = Matrix(name, m, n, block, pivoted)
    if not matrices:
        raise InputError(
            f"{type(model).__name__} has nothing to prune: "
            + ("; ".join(summary(left, layers)) or "no nn.Linear or Conv1D inside its decoder blocks")
            + " (is it pruned or quantised already? start from the original model)"
        )
    return matrices


def left_dense(model: nn.Module) -> dict[str, str]:
    """Weights inside the decoder blocks that cannot be pruned: dotted name of layer or parameter → why.

    A matrix can be pruned where it is nothing but the layer that maps each token's row once: another layer in its place
    must serve every use of it. How a model uses its layers is watched in one forward pass over a few tokens, the first
    time it is asked about; then the user is told what stays dense, too.
    """
    layers = {name: layer for name, (layer, _) in _linear_layers(model).items()}
    unknown = {name: layer for name, layer in layers.items() if layer not in _used}
    if unknown:
        _used.update(_reasons(model, unknown))
    left = {name: _TINY for name, layer in layers.items() if _is_tiny(layer)}
    left |= {name: _used[layer] for name, layer in layers.items() if _used[layer]}
    left |= _tied(model, layers) | _experts(model)
    if unknown:
        for line in summary(left, layers):
            progress.note(line)
    return left


def _linear_layers(model: nn.Module) -> dict[str, tuple[nn.Module, int]]:
    """Name of every linear layer inside the decoder blocks, but for parts of pruned ones → the layer, the block's
    index."""
    _require_merged(model)
    prefix, blocks = decoder_blocks(model)
    found = {}
    for index, block in enumerate(blocks):
        pruned = tuple(f"{name}." for name, layer in block.named_modules() if format_of(layer) is not None)
        for name, layer in block.named_modules():
            if isinstance(layer, nn.Linear | Conv1D) and not (pruned and name.startswith(pruned)):
                found[f"{prefix}.{index}.{name}"] = layer, index
    return found


def _require_merged(model: nn.Module) -> None:
    """InputError where layers have adapters of peft: what they add is no part of the weights that would be pruned."""
    for name, module in model.named_modules():
        if any(kind.__name__ == "BaseTunerLayer" for kind in type(module).__mro__):
            raise InputError(
                f"{name} has an adapter ({type(module).__name__}) that is not merged: prune the model that "
                "`model.merge_and_unload()` returns, or add adapters after pruning"
            )


def _reasons(model: nn.Module, layers: Mapping[str, nn.Module]) -> dict[nn.Module, str]:
    """Why the way in which these layers are made and used keeps them dense; "" where it does not."""
    reasons = {name: "" if _is_linear(layer) else f"no plain linear layer ({type(layer).__name__})"
               for name, layer in layers.items()}  # fmt: skip
    # Put a watcher in the place of each plain layer, and run the model once.
    watched = {name: _Watched(layer) for name, layer in layers.items() if not reasons[name]}
    if watched and not any(layer.weight.is_meta for layer in layers.values()):
        try:
            for name, one in watched.items():
                replace(model, name, one)
            _run(model)
        finally:
            for name in watched:
                replace(model, name, layers[name])
        reasons |= {name: one.reason() for name, one in watched.items()}
    # Which experts of a list see tokens depends on the tokens: what holds for one holds for all.
    routed = {_pattern(name) for name, reason in reasons.items() if reason == _SOME_TOKENS}
    routed |= {_pattern(name) for name, reason in reasons.items() if reason == _NEVER_CALLED and _is_listed(name)}
    return {layer: _SOME_TOKENS if _pattern(name) in routed else reasons[name] for name, layer in layers.items()}


class _Watched(nn.Module):
    """A layer in the pass that shows how it is used. It has nothing of its own: what is read is the layer's."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.__dict__ |= {"layer": layer, "inputs": [], "read": set()}  # no submodule: that would be another name

    def __getattr__(self, name: str):
        value = getattr(self.layer, name)
        if name not in ("in_features", "out_features"):  # which pairs have, too
            self.read.add(name)
        return value

    def forward(self, *args, **kwargs):
        plain = len(args) == 1 and not kwargs
        self.inputs.append(tuple(size for size in args[0].shape[:-1] if size > 1) if plain else None)
        return self.layer(*args, **kwargs)

    def reason(self) -> str:
        if self.read:
            return f"{' and '.join(sorted(self.read))} read by other code than the layer itself"
        if not self.inputs:
            return _NEVER_CALLED
        if any(shape not in ((_ROWS, _TOKENS), (_ROWS * _TOKENS,)) for shape in self.inputs):
            return _SOME_TOKENS
        return "called several times in one forward pass" if len(self.inputs) > 1 else ""


@torch.no_grad()
def _run(model: nn.Module) -> None:
    """A forward pass over a few tokens."""
    embeddings = model.get_input_embeddings()
    ids = torch.arange(_ROWS * _TOKENS, device=embeddings.weight.device) % embeddings.weight.shape[0]
    training = model.training
    model.eval()
    try:
        ids = ids.reshape(_ROWS, _TOKENS)
        run_decoder(model, ids, torch.ones_like(ids))
    except Exception as error:  # an unknown architecture may ask for more than text
        if device_failed(error):
            raise
        raise InputError(
            f"{type(model).__name__} does not run over plain text ({one_line(error)}): Sieve cannot prune it"
        ) from error
    finally:
        model.train(training)


@torch.no_grad()
def _is_linear(layer: nn.Module) -> bool:
    """Whether it is `F.linear` of a plain weight and bias, by its type or, of a subclass, by what it does."""
    own = dict(layer.named_parameters()).keys() <= {"weight", "bias"} and not [*layer.buffers(), *layer.children()]
    if not (own and holds_plain_tensors(layer) and layer.weight.dtype in _DTYPES):
        return False
    if type(layer) in (nn.Linear, Conv1D) or type(layer).forward is nn.Linear.forward or layer.weight.is_meta:
        return True
    W = weight_of(layer)
    x = torch.linspace(-1, 1, 3 * W.shape[1], dtype=W.dtype, device=W.device).reshape(3, -1)
    try:
        return torch.allclose(layer(x), nn.functional.linear(x, W, layer.bias), rtol=0.02, atol=0.02)
    except Exception as error:  # one that asks for more than its input
        if device_failed(error):
            raise
        return False


def _is_tiny(layer: nn.Module) -> bool:
    """Whether rank 1 takes as many numbers as the matrix, m + n ≥ m n."""
    return layer.weight.dim() == 2 and sum(layer.weight.shape) >= layer.weight.numel()


def _tied(model: nn.Module, layers: Mapping[str, nn.Module]) -> dict[str, str]:
    """The layers whose weight another module has too, or that stand in several places of the model."""
    owners: dict[int, list[str]] = {}
    for owner, parameter in model.named_parameters(remove_duplicate=False):
        owners.setdefault(id(parameter), []).append(owner)
    return {name: _SHARED for name, layer in layers.items() if len(owners[id(layer.weight)]) > 1}


def _experts(model: nn.Module) -> dict[str, str]:
    """Parameters inside the decoder blocks that are several matrices."""
    prefix, blocks = decoder_blocks(model)
    convolutions = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
    return {
        f"{prefix}.{index}.{path}.{name}".replace("..", "."): _STACKED
        for index, block in enumerate(blocks)
        for path, module in block.named_modules()
        if not isinstance(module, convolutions)
        for name, parameter in module.named_parameters(recurse=False)
        if parameter.dim() == 3 and min(parameter.shape) > 1
    }


def _pattern(name: str) -> str:
    """model.layers.3.mlp.experts.7.w1 → model.layers.*.mlp.experts.*.w1."""
    return re.sub(r"(?<=\.)\d+(?=\.|$)", "*", name)


def _is_listed(name: str) -> bool:
    """Whether it is in a list inside a block."""
    return _pattern(name).count("*") > 1


def summary(left: Mapping[str, str], layers: Iterable[str]) -> list[str]:
    """What stays dense of these layers, one line a reason; those of all blocks are named together."""
    everywhere = Counter(map(_pattern, {*left, *layers}))
    reasons: dict[str, Counter[str]] = {}
    for name, reason in left.items():
        reasons.setdefault(reason, Counter())[_pattern(name)] += 1
    return [
        ", ".join(
            name if count == everywhere[name] else f"{count} of {everywhere[name]} {name}"
            for name, count in found.items()
        )
        + f" stay{'s' if len(found) == 1 else ''} dense: {reason}"
        for reason, found in reasons.items()
    ]


def by_pattern(left: Mapping[str, str], layers: Iterable[str]) -> dict[str, str]:
    """`left_dense` with the matrices of all blocks as one, model.layers.*.mlp.gate, where the reason is the same.

    `layers`: names of those that are not left dense.
    """
    everywhere = Counter(map(_pattern, {*left, *layers}))
    counts = Counter((_pattern(name), reason) for name, reason in left.items())
    whole = {pattern for (pattern, _), count in counts.items() if count == everywhere[pattern]}
    return {_pattern(name) if _pattern(name) in whole else name: reason for name, reason in left.items()}


def weight_of(layer: nn.Module) -> torch.Tensor:
    """The layer's weight as W [m, n] (a view; Conv1D stores its transpose)."""
    return layer.weight.T if isinstance(layer, Conv1D) else layer.weight


def check_finite(model: nn.Module) -> None:
    """NumericsError naming the first parameter that holds NaN or infinity."""
    for name, parameter in model.named_parameters():
        for tensor in _plain_parts(parameter.detach()):
            # A sum is one pass without a temporary; overflow of a finite sum is ruled out by the second look.
            if not torch.isfinite(tensor.sum()) and not torch.isfinite(tensor).all():
                raise NumericsError(f"{name} holds NaN or infinity: the model file is damaged or badly converted")


def _plain_parts(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """The tensor itself, or the ordinary ones that a quantiser's is made of, as integers and scales."""
    if hasattr(tensor, "__tensor_flatten__"):
        for name in tensor.__tensor_flatten__()[0]:
            yield from _plain_parts(getattr(tensor, name))
    elif tensor.is_floating_point():
        # torch has no sums of 8-bit floats.
        yield tensor.float() if tensor.dtype.itemsize == 1 else tensor


def replace(model: nn.Module, name: str, layer: nn.Module) -> None:
    """Put `layer` where the dotted `name` points."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, layer)


def layer_in(format: LayerFormat, layer: nn.Module, device: torch.device | str | None = None) -> nn.Module:
    """What takes the place of a dense layer in this format: of its shape, its dtype and (unless given) its device.

    Its tensors are to be filled. The layer itself where the format leaves it dense.
    """
    weight = weight_of(layer)
    m, n = weight.shape
    made = format.module(m, n, layer.bias is not None, device or weight.device, weight.dtype)
    return layer if made is None else made
