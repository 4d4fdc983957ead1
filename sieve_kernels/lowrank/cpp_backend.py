"""Compiled CPU path of the low-rank family (csrc/gemv.cpp, csrc/gemm_amx.cpp), for inputs that `dispatch` accepts."""

import ctypes
import struct
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import chain

import torch
from torch import Tensor

from sieve_kernels.core import library
from sieve_kernels.core.checks import as_rows
from sieve_kernels.core.dispatch import GEMV_ROWS
from sieve_kernels.core.plans import Plans
from sieve_kernels.lowrank import torch_backend

_BF16, _FLOAT32, _INT8 = 0, 1, 2
_TYPES = {torch.bfloat16: _BF16, torch.float32: _FLOAT32}
_PLAIN = -1


@lru_cache
def _sieve_layers() -> Callable[[bytes], int]:
    function = library.library().sieve_layers
    function.argtypes = [ctypes.c_char_p]
    return function


def rows_in_one_piece(matrix: Tensor) -> Tensor:
    """The matrix, or stack of matrices, itself if the elements of a row are adjacent, else a copy."""
    return matrix if matrix.stride()[-1] == 1 else matrix.contiguous()


def _tokens(x: Tensor) -> Tensor:
    return rows_in_one_piece(x if x.dim() == 2 else as_rows(x))


def _scales(scale: Tensor) -> Tensor:
    return scale.to(torch.float32).contiguous()


Layer = tuple[Tensor | None, Tensor | None, Tensor, Tensor | None, Tensor | None, Tensor | None]
"""A, its scales, B, its scales, bias and permutation: `Layer` of layer_args.h without the output."""

_TAKEN = rows_in_one_piece, _scales, rows_in_one_piece, _scales, Tensor.contiguous, Tensor.contiguous
"""How each of them is prepared for the kernels; most are passed unchanged."""

_PLACES, _OUTPUT = (0, 2, 4, 6, 8, 9), 10
"""Positions of their addresses, and of the output's, among a layer's twelve integers."""


class LayersCall:
    """A call of the compiled layers for tensors of one kind: shapes and strides are read once, and a call only
    allocates outputs and passes addresses.

    Call it with x [..., n] and then the layers' tensors in order, without those that are None.

    Args:
        x, layers: tensors of this kind.
        outputs: which layers have an output; None: all.
        activation: of gate and up, as in activations.h; plus 16 if the first layer is both, stacked.
        weights: the factors' type, if it differs from x's.
    """

    def __init__(
        self,
        x: Tensor,
        layers: Sequence[Layer],
        outputs: Sequence[int] | None = None,
        activation: int = _PLAIN,
        weights: int | None = None,
    ):
        kind, tokens = _TYPES[x.dtype], _tokens(x)
        self._numbers = [kind, kind if weights is None else weights, 0, tokens.stride(0), *tokens.shape]
        self._numbers += (len(layers), activation)
        self._places, self._take, self._copies = [2], [_tokens], tokens.data_ptr() != x.data_ptr()
        self._outputs: list[tuple[int, tuple[int, ...], tuple[int, ...], int | None]] = []
        for i, layer in enumerate(layers):
            self._add(x, layer, outputs is None or i in outputs)
        self._pack = struct.Struct(f"{len(self._numbers)}q").pack
        self._what = f"{tokens.shape[0]} rows of {x.dtype}"
        self._is_empty = x.numel() == 0
        self._call = _sieve_layers()

    def _add(self, x: Tensor, layer: Layer, has_output: bool) -> None:
        start, bias = len(self._numbers), None
        taken = [None if t is None else take(t) for t, take in zip(layer, _TAKEN, strict=True)]
        for tensor, same, take, place in zip(layer, taken, _TAKEN, _PLACES, strict=True):
            if tensor is None:
                continue
            bias = len(self._places) if place == 8 else bias
            self._places.append(start + place)
            self._take.append(take)
            self._copies = self._copies or same.data_ptr() != tensor.data_ptr()
        A, _, B, _, _, permutation = taken
        width = B.shape[0] if permutation is None else permutation.shape[0]
        self._numbers += (0, 0, 0, 0) if A is None else (0, A.stride(0), 0, A.shape[0])
        self._numbers += (0, B.stride(0), 0, width, 0, 0, 0, width)
        if has_output:
            y = x.new_empty((*x.shape[:-1], width))
            self._outputs.append((start + _OUTPUT, tuple(y.shape), y.stride(), bias))

    def __call__(self, *tensors: Tensor, ys: Sequence[Tensor] | None = None) -> Sequence[Tensor]:
        """The outputs, written to `ys` if given."""
        numbers, x = self._numbers.copy(), tensors[0]
        if ys is None:
            ys = [x.new_empty_strided(shape, strides) for _, shape, strides, _ in self._outputs]
        for (place, *_), y in zip(self._outputs, ys):  # noqa: B905 (strict costs time)
            numbers[place] = y.data_ptr()
        if self._is_empty:  # no rows, or nothing to sum
            for (*_, bias), y in zip(self._outputs, ys, strict=True):
                y.zero_() if bias is None else y.copy_(tensors[bias])
            return ys
        if self._copies:
            tensors = [take(tensor) for take, tensor in zip(self._take, tensors, strict=True)]
        for place, tensor in zip(self._places, tensors):  # noqa: B905
            numbers[place] = tensor.data_ptr()
        done = self._call(self._pack(*numbers))
        if done == 1:
            return ys
        if done < 0:
            raise ValueError("a permutation holds values outside of 0 to m - 1")
        raise RuntimeError(f"the compiled kernel does not serve {self._what}: {library.status()}")


def _linear(x: Tensor, A: Tensor, B: Tensor, bias: Tensor | None) -> Callable[..., Tensor]:
    call = LayersCall(x, [(A, None, B, None, bias, None)])
    if bias is None:
        return lambda x, A, B, _: call(x, A, B)[0]
    return lambda *tensors: call(*tensors)[0]


linear = Plans(_linear)
"""y [..., m] = (x Aᵀ) Bᵀ + bias; x [..., n], A [r, n], B [m, r], bias [m]."""


def _dense(x: Tensor, W: Tensor, bias: Tensor | None) -> Callable[..., Tensor]:
    call = LayersCall(x, [(None, None, W, None, bias, None)])
    if bias is None:
        return lambda x, W, _: call(x, W)[0]
    return lambda *tensors: call(*tensors)[0]


dense = Plans(_dense)
"""y [..., m] = x Wᵀ + bias; x [..., n], W [m, n], bias [m]."""


def _group(
    x: Tensor,
    As: Sequence[Tensor],
    Bs: Sequence[Tensor],
    biases: Sequence[Tensor] | None,
    permutations: Sequence[Tensor] | None = None,
) -> Callable[..., list[Tensor]]:
    none = [None] * len(As)
    order = zip(As, none, Bs, none, biases or none, permutations or none, strict=True)
    call = LayersCall(x, list(order))

    def run(x, As, Bs, biases, permutations=None):
        given = [of for of in (As, Bs, biases, permutations) if of]
        return call(x, *chain.from_iterable(zip(*given)))  # noqa: B905 (as many each: the plan's kind says so)

    return run


group = Plans(_group)
"""y_i [..., m_i] = (x A_iᵀ) B_iᵀ + bias_i; x [..., n], A_i [r_i, n], B_i [m_i, r_i], bias_i [m_i]; or, with
permutations_i [m_i] int64, what `pivoted` does with each."""


def _pivoted(x: Tensor, A: Tensor, C: Tensor, permutation: Tensor, bias: Tensor | None) -> Callable[..., Tensor]:
    call = LayersCall(x, [(A, None, C, None, bias, permutation)])
    if bias is None:
        return lambda x, A, C, permutation, _: call(x, A, C, permutation)[0]
    return lambda x, A, C, permutation, bias: call(x, A, C, bias, permutation)[0]


pivoted = Plans(_pivoted)
"""y [..., m], y[..., permutation] = [z, z Cᵀ] + bias[permutation], z = x Aᵀ.

x [..., n], A [r, n], C [m - r, r], permutation [m] int64, bias [m].
"""


def _candidate(x: Tensor, A: Tensor, B: Tensor, y: Tensor) -> Callable[..., object]:
    call = LayersCall(x, [(A, None, B, None, None, None)])
    return lambda x, A, B, y: call(x, A, B, ys=[y])


_candidates = Plans(_candidate)


def population(x: Tensor, A: Tensor, B: Tensor, ranks: Tensor) -> Tensor:
    """y [P, T, m], candidate p at rank ranks[p] of one pair of factors; x [P, T, n], A [R, n], B [m, R], ranks [P]."""
    y = x.new_empty((*x.shape[:2], B.shape[0]))
    A, B = rows_in_one_piece(A), rows_in_one_piece(B)
    for tokens, out, rank in zip(x, y, ranks.tolist(), strict=True):
        _candidates(tokens, A[:rank], B[:, :rank], out)
    return y


def _quantized(
    x: Tensor, A_q: Tensor, A_scale: Tensor, B_q: Tensor, B_scale: Tensor, bias: Tensor | None
) -> Callable[..., Tensor]:
    if A_q.dtype != torch.int8 or B_q.dtype != torch.int8 or as_rows(x).shape[0] > GEMV_ROWS:
        return torch_backend.quantized
    call = LayersCall(x, [(A_q, A_scale, B_q, B_scale, bias, None)], weights=_INT8)
    if bias is None:
        return lambda x, A_q, A_scale, B_q, B_scale, _: call(x, A_q, A_scale, B_q, B_scale)[0]
    return lambda *tensors: call(*tensors)[0]


quantized = Plans(_quantized)
"""y [..., m] = (x Aᵀ) Bᵀ + bias; the factors as `quantize_rows` makes them, compiled for 8 bits."""
