"""How a pruned model runs faster without being another: gated MLPs in one go, dense layers through our `linear`,
normalisation and rotary positions in one pass each.

Only how a module runs changes, not what it is: children, parameters and checkpoints stay as they are, and as soon as
one of the layers is wrapped, quantised or hooked the module runs its own forward again.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from types import FunctionType

import torch
from torch import nn

from sieve.nn.families import ACTIVATIONS, kind_of
from sieve.nn.formats.base import format_of
from sieve.nn.low_rank import PAIRS, Group, holds_plain_tensors
from sieve.nn.narrow import LINEAR
from sieve.nn.patching import has_hooks, is_untouched, replace_forward, replaced_by, restore_forward
from sieve.nn.stacked import StackedOutput
from sieve_kernels import act_mul, linear, lowrank_mlp, rms_norm, rotary
from sieve_kernels.core.dispatch import GEMV_ROWS_GPU


def fuse_(model: nn.Module) -> nn.Module:
    """Let the modules of `model` use the operators that serve them, in place; returns the model.

    A gated MLP with a pair in it is one operator, which need not store its wide middle; any other multiplies in place,
    or in the activation's pass. Normalisation and rotary positions are one pass each, and a layer that stayed dense,
    the output head among them, reads its weight faster where there are few rows. On a GPU pairs of query, key and value
    are computed together. `apply_` and loading a pruned model do this already. Results differ from the unfused ones by
    rounding.
    """
    _fuse(model)
    return model


@contextmanager
def fused(model: nn.Module) -> Iterator[None]:
    """Inside the block the model runs as after `fuse_`; afterwards as before."""
    modules = _fuse(model)
    try:
        yield
    finally:
        for module in modules:
            restore_forward(module)


def _fuse(model: nn.Module) -> list[nn.Module]:
    """The modules whose forward was replaced."""
    inside_pairs = {child for pair in model.modules() if format_of(pair) is not None for child in pair.children()}
    found = []
    for module in model.modules():
        forward = _forward_for(module, module in inside_pairs)
        if forward is not None and is_untouched(module):
            replace_forward(module, forward)
            found.append(module)
    return found


def _forward_for(module: nn.Module, inside_pair: bool) -> Callable | None:
    if type(module) in LINEAR:
        return None if inside_pair else _dense
    return {"mlp": _gated, "norm": _norm, "attention": _attention, None: None}[kind_of(module)]


def _gated(mlp: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """x [..., n] → [..., n]."""
    activation = ACTIVATIONS.get(type(mlp.act_fn).__name__)
    layers = [_tensors(layer) for layer in _layers(mlp)]
    if activation and None not in layers and any(len(layer) > 1 for layer in layers):
        *inner, down = layers
        return lowrank_mlp(x, *(inner if len(inner) == 2 else (*inner, None)), down, activation)
    if torch.is_grad_enabled():
        return type(mlp).forward(mlp, x)
    if activation and _on_gpu(x):
        gate, up = mlp.gate_proj(x), mlp.up_proj(x)
        return mlp.down_proj(act_mul(gate, up, activation) if _serves(gate, up) else mlp.act_fn(gate) * up)
    return mlp.down_proj(mlp.act_fn(mlp.gate_proj(x)).mul_(mlp.up_proj(x)))


def _layers(mlp: nn.Module) -> list[nn.Module]:
    """Gate, up and down; or, where gate and up are stacked, the stack and down."""
    gate, up, down = (mlp._modules[name] for name in ("gate_proj", "up_proj", "down_proj"))
    members = [one.stack.members for one in (gate, up) if type(one) is StackedOutput and is_untouched(one)]
    if members == [["gate_proj", "up_proj"]] * 2:
        return [getattr(mlp, gate.stack.name), down]
    return [gate, up, down]


def _tensors(layer: nn.Module) -> Sequence[torch.Tensor] | None:
    """What `lowrank_mlp` takes of a layer; None where the layer must be called as the module it is."""
    if type(layer) in LINEAR:
        plain = holds_plain_tensors(layer) and not has_hooks(layer)
        plain = plain and ("forward" not in layer.__dict__ or replaced_by(layer) is _dense)
        tensors = layer._parameters.values() if plain else None
    else:
        tensors = layer.tensors() if type(layer) in PAIRS and is_untouched(layer) else None
    if tensors is None:
        return None
    *tensors, bias = tensors
    return tensors if bias is None else None


def _dense(layer: nn.Linear, x: torch.Tensor) -> torch.Tensor:
    """x [..., n] → y [..., m]."""
    if (x.is_cpu or _few_on_gpu(x)) and holds_plain_tensors(layer):
        return linear(x, layer.weight, layer.bias)
    return nn.Linear.forward(layer, x)


def _few_on_gpu(x: torch.Tensor) -> bool:
    """Where our product is made for it; elsewhere the library's needs no second look."""
    few = x.numel() <= GEMV_ROWS_GPU * x.shape[-1] and x.dtype.itemsize == 2
    return few and _on_gpu(x) and not (torch.is_grad_enabled() or torch.compiler.is_compiling())


def _on_gpu(x: torch.Tensor) -> bool:
    return x.is_cuda


def _norm(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """x [..., n] → [..., n]."""
    weight = module._parameters.get("weight")  # None if it was wrapped since
    if weight is not None and _serves(x, weight):
        return rms_norm(x, weight, module.variance_epsilon)
    return type(module).forward(module, x)


def _serves(x: torch.Tensor, *others: torch.Tensor) -> bool:
    """Whether the pointwise operators are for these tensors. Gradients are torch's own: so they stay as they were."""
    if torch.is_grad_enabled() or torch.compiler.is_compiling():  # compilers fuse them
        return False
    if not (x.is_cpu or x.is_cuda) or type(x) is not torch.Tensor:
        return False
    for other in others:
        if other.dtype is not x.dtype or (type(other) is not torch.Tensor and type(other) is not nn.Parameter):
            return False
    return True


def _attention(module: nn.Module, *arguments, **options):
    """The class's own forward, with our rotary positions where they serve, and query, key and value together."""
    if torch.compiler.is_compiling():  # compilers look a function's globals up by the name of its module
        return type(module).forward(module, *arguments, **options)
    forward = _turning(type(module))
    x = arguments[0] if arguments else options.get("hidden_states")
    if type(x) is torch.Tensor and _on_gpu(x) and not torch.is_grad_enabled():
        group = Group.of([module._modules.get(name) for name in ("q_proj", "k_proj", "v_proj")])
        if group is not None:
            with group:
                return forward(module, *arguments, **options)
    return forward(module, *arguments, **options)


@cache
def _turning(attention: type[nn.Module]) -> FunctionType:
    """The class's own forward, which finds our rotary positions where its module's stand."""
    forward = inspect.unwrap(attention.forward)
    theirs = forward.__globals__["apply_rotary_pos_emb"]

    def apply_rotary_pos_emb(q, k, cos, sin, unsqueeze_dim=1):
        if unsqueeze_dim == 1 and cos.shape[-1] == q.shape[-1] and _serves(q, k, cos, sin):
            return rotary(q, k, cos, sin)
        return theirs(q, k, cos, sin, unsqueeze_dim=unsqueeze_dim)

    ours = {**forward.__globals__, "apply_rotary_pos_emb": apply_rotary_pos_emb}
    return FunctionType(forward.__code__, ours, forward.__name__, forward.__defaults__, forward.__closure__)
