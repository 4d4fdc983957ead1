"""Compiled CPU path of the low-rank family (few_rows.cpp, many_rows.cpp), for inputs that `dispatch` finds fit."""

import ctypes
import struct
from collections.abc import Sequence

import torch
from torch import Tensor

from sieve_kernels import native
from sieve_kernels.arguments import as_rows
from sieve_kernels.dispatch import FEW_ROWS
from sieve_kernels.lowrank import cpu

_BF16, _FLOAT32, _INT8 = 0, 1, 2
_TYPES = {torch.bfloat16: _BF16, torch.float32: _FLOAT32}
_PLAIN = -1


def _function():
    function = native.library().sieve_layers
    function.argtypes = [ctypes.c_char_p]
    return function


_sieve_layers = _function()


def linear(x: Tensor, A: Tensor, B: Tensor, bias: Tensor | None) -> Tensor:
    """y [..., m] = (x Aᵀ) Bᵀ + bias; x [..., n], A [r, n], B [m, r], bias [m]."""
    y = x.new_empty((*x.shape[:-1], B.shape[0]))
    run(x, [(rows_in_one_piece(A), None, rows_in_one_piece(B), None, bias, None, y)])
    return y


def dense(x: Tensor, W: Tensor, bias: Tensor | None) -> Tensor:
    """y [..., m] = x Wᵀ + bias; x [..., n], W [m, n], bias [m]."""
    y = x.new_empty((*x.shape[:-1], W.shape[0]))
    run(x, [(None, None, rows_in_one_piece(W), None, bias, None, y)])
    return y


def group(x: Tensor, As: Sequence[Tensor], Bs: Sequence[Tensor], biases: Sequence[Tensor] | None) -> list[Tensor]:
    """y_i [..., m_i] = (x A_iᵀ) B_iᵀ + bias_i; x [..., n], A_i [r_i, n], B_i [m_i, r_i], bias_i [m_i]."""
    ys = [x.new_empty((*x.shape[:-1], B.shape[0])) for B in Bs]
    biases = biases or [None] * len(As)
    run(
        x,
        [
            (rows_in_one_piece(A), None, rows_in_one_piece(B), None, b, None, y)
            for A, B, b, y in zip(As, Bs, biases, ys, strict=True)
        ],
    )
    return ys


def pivoted(x: Tensor, A: Tensor, C: Tensor, permutation: Tensor, bias: Tensor | None) -> Tensor:
    """y [..., m], y[..., permutation] = [z, z Cᵀ] + bias[permutation], z = x Aᵀ.

    x [..., n], A [r, n], C [m - r, r], permutation [m] int64, bias [m].
    """
    y = x.new_empty((*x.shape[:-1], permutation.shape[0]))
    run(x, [(rows_in_one_piece(A), None, rows_in_one_piece(C), None, bias, permutation.contiguous(), y)])
    return y


def population(x: Tensor, A: Tensor, B: Tensor, ranks: Tensor) -> Tensor:
    """y [P, T, m], candidate p at rank ranks[p] of one pair of factors; x [P, T, n], A [R, n], B [m, R], ranks [P]."""
    y = x.new_empty((*x.shape[:2], B.shape[0]))
    A, B = rows_in_one_piece(A), rows_in_one_piece(B)
    for tokens, out, rank in zip(x, y, ranks.tolist(), strict=True):
        run(tokens, [(A[:rank], None, B[:, :rank], None, None, None, out)])
    return y


def quantized(x: Tensor, A_q: Tensor, A_scale: Tensor, B_q: Tensor, B_scale: Tensor, bias: Tensor | None) -> Tensor:
    """y [..., m] = (x Aᵀ) Bᵀ + bias; the factors as `quantize_rows` makes them, compiled for 8 bits."""
    if A_q.dtype != torch.int8 or B_q.dtype != torch.int8 or as_rows(x).shape[0] > FEW_ROWS:
        return cpu.quantized(x, A_q, A_scale, B_q, B_scale, bias)
    y = x.new_empty((*x.shape[:-1], B_q.shape[0]))
    A_scale, B_scale = (scale.to(torch.float32).contiguous() for scale in (A_scale, B_scale))
    run(x, [(rows_in_one_piece(A_q), A_scale, rows_in_one_piece(B_q), B_scale, bias, None, y)], weights=_INT8)
    return y


Layer = tuple[Tensor | None, Tensor | None, Tensor, Tensor | None, Tensor | None, Tensor | None, Tensor]
"""A, its scales, B, its scales, bias, permutation and the output: `Layer` of layers.h."""


def run(x: Tensor, layers: Sequence[Layer], activation: int = _PLAIN, weights: int | None = None) -> None:
    """Compute the layers of one input x [..., n] into their outputs; with an activation, gate and up into the first."""
    if x.numel() == 0:  # no rows, or nothing to sum
        for *_, bias, _, y in layers:
            y.zero_() if bias is None else y.copy_(bias)
        return
    tokens = rows_in_one_piece(x if x.dim() == 2 else as_rows(x))
    kind = _TYPES[x.dtype]
    numbers = [kind, kind if weights is None else weights, tokens.data_ptr(), tokens.stride()[0], *tokens.shape]
    numbers += (len(layers), activation)
    kept = []
    for A, A_scale, B, B_scale, bias, permutation, y in layers:
        if bias is not None and bias.stride(0) != 1:
            bias = bias.contiguous()
            kept.append(bias)  # its memory must outlive the call
        width = y.shape[-1]
        numbers += (0, 0, 0, 0) if A is None else (A.data_ptr(), A.stride()[0], _address(A_scale), A.shape[0])
        numbers += (B.data_ptr(), B.stride()[0], _address(B_scale), width)
        numbers += (_address(bias), _address(permutation), y.data_ptr(), width)
    done = _sieve_layers(struct.pack(f"{len(numbers)}q", *numbers))
    if done < 0:
        raise ValueError("a permutation holds values outside of 0 to m - 1")
    if not done:
        raise RuntimeError(f"the compiled kernel does not serve {tokens.shape[0]} rows of {x.dtype}: {native.status()}")


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def rows_in_one_piece(matrix: Tensor) -> Tensor:
    """The matrix, or stack of them, itself where the numbers of a row are adjacent, else a copy."""
    return matrix if matrix.stride()[-1] == 1 else matrix.contiguous()
