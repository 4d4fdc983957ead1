"""`lowrank_mlp`: a whole gated MLP in one call; each of its three matrices may be dense or a pair."""

from collections.abc import Sequence

import torch
from torch import Tensor

from sieve_kernels.core import dispatch
from sieve_kernels.core.checks import (
    autocast,
    autocasts,
    describe,
    require_float,
    require_same_device,
    require_same_dtype,
)
from sieve_kernels.core.dispatch import Implementation
from sieve_kernels.core.op import define_op
from sieve_kernels.core.plans import direct
from sieve_kernels.lowrank import training
from sieve_kernels.lowrank.checks import check_permutation
from sieve_kernels.lowrank.linear import linear
from sieve_kernels.lowrank.lowrank_linear import lowrank_linear
from sieve_kernels.lowrank.lowrank_linear_pivoted import lowrank_linear_pivoted
from sieve_kernels.mlp import backends, cpp_backend, reference
from sieve_kernels.mlp.lowrank_swiglu import lowrank_swiglu

Layer = Sequence[Tensor]
"""(W,) with W [m, n]; a pair (A, B) with A [r, n], B [m, r]; or pivoted (A, C, permutation) with C [m - r, r]."""


def lowrank_mlp(x: Tensor, gate: Layer, up: Layer | None, down: Layer, activation: str = "silu") -> Tensor:
    """y = down(act(gate(x)) · up(x)); where one kernel does it all, the wide middle is never stored.

    Differentiable in x and all weights, twice if need be. Where gradients are required or no kernel does it all, it is
    composed of its parts' operators. Under autocast it computes in autocast's dtype, as `F.linear` does.

    Args:
        x: inputs [..., n].
        gate, up: layers from n to m elements: dense `(W,)`, low-rank `(A, B)`, or pivoted `(A, C, permutation)` as
            `lowrank_linear_pivoted` has it. Kinds and ranks may differ. With `up` None, `gate` is both of them stacked,
            from n to 2m elements: all gates, then all ups.
        down: such a layer from m to k elements.
        activation: "silu", "gelu", "gelu_tanh" (the tanh approximation) or "relu".

    Returns:
        y [..., k] in x's dtype (float16, bfloat16, float32 or float64, the same for all but permutations).

    Raises:
        ValueError: shapes or devices do not fit, (on CPU) a permutation is none, or the activation is unknown.
        TypeError: dtypes differ or are not floats, or a permutation is not int64.

    Example:
        >>> x, A, B = torch.randn(5, 64), torch.randn(16, 64), torch.randn(96, 16)
        >>> lowrank_mlp(x, (A, B), (torch.randn(96, 64),), (torch.randn(8, 96), torch.randn(64, 8))).shape
        torch.Size([5, 64])
    """
    layers = [tuple(layer) for layer in (gate, up, down) if layer is not None]
    if not torch.compiler.is_compiling():
        y = _mlp.direct(x, layers, activation)
        if y is not None:
            return y
    if autocasts(x):
        x, layers = autocast(x), [tuple(autocast(t) for t in layer) for layer in layers]
    _check(x, layers, activation)
    tensors = sum(layers, ())
    if training.by_library(x, *tensors):
        return training.mlp(x, layers, activation)
    if torch.is_grad_enabled() and any(t.requires_grad for t in (x, *tensors)):
        return parts(x, layers, activation)
    return _mlp.op(x, tensors, [len(layer) for layer in layers], activation)


def parts(x: Tensor, layers: Sequence[Layer], activation: str) -> Tensor:
    """The MLP composed of its parts' operators."""
    *inner, down = layers
    if list(map(len, inner)) == [2, 2]:
        return _layer(lowrank_swiglu(x, *inner[0], *inner[1], activation), down)
    gate, up = [_layer(x, layer) for layer in inner] if len(inner) == 2 else _layer(x, *inner).chunk(2, -1)
    return _layer(reference.ACTIVATIONS[activation](gate) * up, down)


def _layer(x: Tensor, tensors: Layer) -> Tensor:
    return (linear, lowrank_linear, lowrank_linear_pivoted)[len(tensors) - 1](x, *tensors)


def _check(x: Tensor, layers: Sequence[Layer], activation: str) -> None:
    if activation not in reference.ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(reference.ACTIVATIONS)}, got {activation!r}")
    # Check each layer; its number of inputs is the previous layer's number of outputs.
    require_float("x", x)
    n = x.shape[-1] if x.dim() else None
    names = ("gate", "up", "down") if len(layers) == 3 else ("gate and up, stacked,", "down")
    for place, (name, layer) in enumerate(zip(names, layers, strict=True)):
        if not _fits(layer, n):
            given = ", ".join(map(describe, layer))
            raise ValueError(
                f"need {name} of {n} inputs as (W [m, n],), (A [r, n], B [m, r]) or (A [r, n], C [m - r, r], "
                f"permutation [m]) with r ≥ 1, got x {describe(x)}, {name} ({given})"
            )
        for tensor in layer[:2]:
            require_same_dtype("x", x, name, tensor)
        if len(layer) == 3:
            if layer[2].dtype != torch.int64:
                raise TypeError(f"the permutation of {name} must be int64, got {describe(layer[2])}")
            require_same_device("x", x, name, layer[2])
        # After up, n is the width of act(gate) · up, the input of down.
        if place == len(layers) - 2:
            first, n = reference.width(layers[0]), reference.width(layer)
            if first != n:
                raise ValueError(f"gate and up must have as many outputs, got {first} and {n}")
            if place == 0:
                if n % 2:
                    raise ValueError(f"gate and up must have as many outputs, got {n} in all")
                n //= 2


def _fits(layer: Layer, n: int | None) -> bool:
    if len(layer) not in (1, 2, 3) or layer[0].dim() != 2 or layer[0].shape[1] != n:
        return False
    r = layer[0].shape[0]
    if len(layer) > 1 and (r == 0 or layer[1].dim() != 2 or layer[1].shape[1] != r):
        return False
    return len(layer) < 3 or layer[2].shape == (r + layer[1].shape[0],)


def _split(tensors: Sequence[Tensor], counts: Sequence[int]) -> list[Layer]:
    left = iter(tensors)
    return [tuple(next(left) for _ in range(count)) for count in counts]


def _look(layers: Sequence[Layer]) -> None:
    """ValueError where a permutation, on a CPU, is none."""
    for layer in layers:
        if len(layer) == 3:
            check_permutation(layer[2])


def _run(x, tensors, counts, activation):
    layers = _split(tensors, counts)
    _look(layers)
    return dispatch.implementation("lowrank_mlp", x, _rank(x, layers, activation))(x, layers, activation)


def _rank(x, layers, activation):
    return max((layer[0].shape[0] for layer in layers if len(layer) > 1), default=0)


_mlp = define_op(
    "lowrank_mlp",
    "(Tensor x, Tensor[] tensors, int[] counts, str activation) -> Tensor",
    (
        dispatch.cpp(lambda: cpp_backend.mlp),
        Implementation(
            "torch",
            lambda: backends.torch_gpu().mlp,
            "library products, activated and put in order in one pass",
            dispatch.on_gpu,
            dispatch.by_library,
        ),
        dispatch.triton_gemv(lambda: backends.triton_gemv().mlp),
        Implementation(
            "triton_grouped",
            lambda: backends.triton_grouped().mlp,
            "gate and up in launches that they share, sums split to fill the GPU",
            dispatch.few_tiles,
            dispatch.never,
        ),
        Implementation("parts", lambda: parts, "the operators of its parts", dispatch.anywhere),
    ),
    fake=lambda x, tensors, counts, _: x.new_empty((*x.shape[:-1], reference.width(_split(tensors, counts)[-1]))),
    run=_run,
    direct=direct("lowrank_mlp", _check, _rank, look=lambda x, layers, activation: _look(layers)),
)
