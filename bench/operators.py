"""For each operator the contenders that compute the same layer, with the operations and bytes of each.

Bytes are the minimum: weights, inputs and results once, and the intermediates that a contender stores.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

import sieve_kernels
from bench.shapes import MODELS, Cell

CHECKED = 16
"""Rows of the result whose error is measured: float64 products of all rows would take longer than the benchmark."""

CANDIDATES = 8
"""Number of candidates in a population."""


@dataclass(frozen=True)
class Contender:
    """A way to compute a layer. `run()` computes it; `exact()` returns the first rows of its result in float64."""

    name: str
    run: Callable[[], Tensor]
    flops: int
    bytes: int
    exact: Callable[[], Tensor]

    def error(self) -> float:
        """Relative Frobenius distance of the first rows to the float64 result."""
        exact = self.exact()
        return ((self.run()[: len(exact)].double() - exact).norm() / exact.norm()).item()


class Tensors:
    """Random tensors of a cell's dtype on the measured device, scaled so that outputs are as large as inputs."""

    def __init__(self, cell: Cell, device: torch.device):
        self.dtype, self.device = cell.dtype, device
        self.generator = torch.Generator(device).manual_seed(0)

    def __call__(self, *sizes: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(sizes, device=self.device, generator=self.generator) * scale).to(self.dtype)

    def factors(self, n: int, m: int, r: int) -> tuple[Tensor, Tensor]:
        return self(r, n, scale=n**-0.5), self(m, r, scale=r**-0.5)


def lowrank_linear(cell: Cell, device: torch.device) -> list[Contender]:
    """y = (x Aᵀ) Bᵀ against the dense layer and against two products."""
    t, (T, n, m, r) = Tensors(cell, device), (cell.rows, cell.n, cell.m, cell.rank)
    x, W, (A, B) = t(T, n), t(m, n, scale=n**-0.5), t.factors(n, m, r)
    head = x[:CHECKED].double()
    pair = 2 * T * r * (n + m), cell.size * (T * (n + m) + r * (n + m)), lambda: head @ A.double().T @ B.double().T
    stored = pair[0], pair[1] + 2 * cell.size * T * r, pair[2]
    return [
        Contender("ours", lambda: sieve_kernels.lowrank_linear(x, A, B), *pair),
        Contender("dense", lambda: F.linear(x, W), *_dense(cell, n, m), lambda: head @ W.double().T),
        Contender("two", lambda: F.linear(F.linear(x, A), B), *stored),
        Contender("compiled", _compiled(lambda x, A, B: F.linear(F.linear(x, A), B), x, A, B), *stored),
    ]


def linear(cell: Cell, device: torch.device) -> list[Contender]:
    """The dense layer through our operator, for matrices that stay dense."""
    t, (T, n, m) = Tensors(cell, device), (cell.rows, cell.n, cell.m)
    x, W = t(T, n), t(m, n, scale=n**-0.5)

    def exact() -> Tensor:
        return x[:CHECKED].double() @ W.double().T

    return [
        Contender("ours", lambda: sieve_kernels.linear(x, W), *_dense(cell, n, m), exact),
        Contender("dense", lambda: F.linear(x, W), *_dense(cell, n, m), exact),
    ]


def lowrank_swiglu(cell: Cell, device: torch.device) -> list[Contender]:
    """y = silu(gate) · up of two pairs against the dense layers and against four products."""
    t, (T, n, m, r) = Tensors(cell, device), (cell.rows, cell.n, cell.m, cell.rank)
    x, (A, B), (C, D) = t(T, n), t.factors(n, m, r), t.factors(n, m, r)
    W, V = t(m, n, scale=n**-0.5), t(m, n, scale=n**-0.5)
    head = x[:CHECKED].double()

    def unfused(x, A, B, C, D):
        return F.silu(F.linear(F.linear(x, A), B)) * F.linear(F.linear(x, C), D)

    flops, least = 4 * T * r * (n + m), cell.size * (T * (n + m) + 2 * r * (n + m))
    stored = least + cell.size * (4 * T * r + 4 * T * m)
    dense = 4 * T * n * m, cell.size * (2 * n * m + T * n + 5 * T * m)

    def exact() -> Tensor:
        return unfused(head, *(f.double() for f in (A, B, C, D)))

    def exact_dense() -> Tensor:
        return F.silu(head @ W.double().T) * (head @ V.double().T)

    return [
        Contender("ours", lambda: sieve_kernels.lowrank_swiglu(x, A, B, C, D), flops, least, exact),
        Contender("dense", lambda: F.silu(F.linear(x, W)) * F.linear(x, V), *dense, exact_dense),
        Contender("two", lambda: unfused(x, A, B, C, D), flops, stored, exact),
        Contender("compiled", _compiled(unfused, x, A, B, C, D), flops, stored, exact),
    ]


def lowrank_linear_group(cell: Cell, device: torch.device) -> list[Contender]:
    """Query, key and value of one input against three dense layers and against six products, concatenated."""
    # Three layers of one input.
    t, (T, n, r) = Tensors(cell, device), (cell.rows, cell.n, cell.rank)
    ms = MODELS[cell.model].queries, MODELS[cell.model].keys, MODELS[cell.model].keys
    x, pairs, Ws = t(T, n), [t.factors(n, m, r) for m in ms], [t(m, n, scale=n**-0.5) for m in ms]
    As, Bs = [A for A, _ in pairs], [B for _, B in pairs]
    head = x[:CHECKED].double()

    def unfused(x, As, Bs):
        return [F.linear(F.linear(x, A), B) for A, B in zip(As, Bs, strict=True)]

    # The minimum work; separate products read x three times and store z.
    flops = sum(2 * T * r * (n + m) for m in ms)
    least = cell.size * (T * n + sum(T * m + r * (n + m) for m in ms))
    stored = least + cell.size * (6 * T * r + 2 * T * n)
    dense = [sum(numbers) for numbers in zip(*(_dense(cell, n, m) for m in ms), strict=True)]

    def joined(run: Callable[[], list[Tensor]]) -> Callable[[], Tensor]:
        return lambda: torch.cat(run(), 1)

    def exact() -> Tensor:
        return torch.cat(unfused(head, [A.double() for A in As], [B.double() for B in Bs]), 1)

    def exact_dense() -> Tensor:
        return head @ torch.cat(Ws).double().T

    return [
        Grouped("ours", lambda: sieve_kernels.lowrank_linear_group(x, As, Bs), flops, least, exact),
        Grouped("dense", lambda: [F.linear(x, W) for W in Ws], *dense, exact_dense),
        Grouped("two", lambda: unfused(x, As, Bs), flops, stored, exact),
        Grouped("compiled", _compiled(unfused, x, As, Bs), flops, stored, exact),
    ]


def lowrank_linear_population(cell: Cell, device: torch.device) -> list[Contender]:
    """A search's candidates, each with its own rank, in one call against one candidate at a time."""
    t, (T, n, m, r) = Tensors(cell, device), (cell.rows, cell.n, cell.m, cell.rank)
    x, W, (A, B) = t(CANDIDATES, T, n), t(m, n, scale=n**-0.5), t.factors(n, m, r)
    ranks = [max(1, r * (i + 1) // CANDIDATES) for i in range(CANDIDATES)]
    on_device = torch.tensor(ranks, device=device)
    flops = 2 * T * sum(ranks) * (n + m)
    least = cell.size * (CANDIDATES * T * (n + m) + r * (n + m))
    again = least + cell.size * ((sum(ranks) - r) * (n + m) + 2 * T * sum(ranks))
    dense = 2 * CANDIDATES * T * n * m, cell.size * (CANDIDATES * T * (n + m) + n * m)

    def loop(x, A, B) -> Tensor:
        return torch.stack([F.linear(F.linear(x[i], A[:q]), B[:, :q]) for i, q in enumerate(ranks)])

    def exact() -> Tensor:
        return loop(x.double(), A.double(), B.double())

    return [
        Contender("ours", lambda: sieve_kernels.lowrank_linear_population(x, A, B, on_device), flops, least, exact),
        Contender("dense", lambda: F.linear(x, W), *dense, lambda: x.double() @ W.double().T),
        Contender("two", lambda: loop(x, A, B), flops, again, exact),
        Contender("compiled", _compiled(loop, x, A, B), flops, again, exact),
    ]


def lowrank_linear_quantized(cell: Cell, device: torch.device) -> list[Contender]:
    """Factors of 8 bits against the dense layer and against two products with factors that are not quantized."""
    ours, *others = lowrank_linear(cell, device)
    t, (T, n, m, r) = Tensors(cell, device), (cell.rows, cell.n, cell.m, cell.rank)
    x, factors = t(T, n), [sieve_kernels.quantize_rows(W, 8) for W in t.factors(n, m, r)]
    (A, a), (B, b) = factors
    size = cell.size * T * (n + m) + r * (n + m) + 4 * (r + m)

    def exact() -> Tensor:
        return (x[:CHECKED].double() @ (A * a[:, None]).double().T) @ (B * b[:, None]).double().T

    run = partial(sieve_kernels.lowrank_linear_quantized, x, A, a, B, b)
    return [Contender("ours", run, ours.flops, size, exact), *others]


class Grouped(Contender):
    """A contender whose result is several tensors."""

    def error(self) -> float:
        exact = self.exact()
        result = torch.cat([y[: len(exact)] for y in self.run()], 1)
        return ((result.double() - exact).norm() / exact.norm()).item()


def gram_(cell: Cell, device: torch.device) -> list[Contender]:
    """C += xᵀ x in float32 against the library's product, which computes both triangles."""
    t, (T, n) = Tensors(cell, device), (cell.rows, cell.n)
    x, ours, theirs = t(T, n), *(torch.zeros(n, n, device=device) for _ in range(2))

    def accumulate() -> Tensor:
        wide = x.float()
        return theirs.addmm_(wide.T, wide)

    # Half of the products are needed. Only the upper triangle of the accumulator is read; all of it is written.
    useful = T * n * (n + 1), cell.size * T * n + 6 * n * n
    whole = 2 * T * n * n, cell.size * T * n + 8 * n * n
    return [
        Summed("ours", lambda: sieve_kernels.gram_(ours, x), *useful, lambda: _gram(x)),
        Summed("dense", accumulate, *whole, lambda: _gram(x)),
    ]


class Summed(Contender):
    """A contender that adds to its result; its error is measured on one addition to zero."""

    def error(self) -> float:
        self.run().zero_()
        exact = self.exact()
        result = self.run()[: exact.shape[0], : exact.shape[1]]
        return ((result.double() - exact).norm() / exact.norm()).item()


OPERATORS: dict[str, Callable[[Cell, torch.device], list[Contender]]] = {
    "lowrank_linear": lowrank_linear,
    "lowrank_linear_group": lowrank_linear_group,
    "lowrank_swiglu": lowrank_swiglu,
    "lowrank_linear_population": lowrank_linear_population,
    "lowrank_linear_quantized": lowrank_linear_quantized,
    "linear": linear,
    "gram_": gram_,
}

MATRICES = {"lowrank_linear_group": ("q",), "lowrank_swiglu": ("gate",), "gram_": ("q", "down")}
"""The matrices of a model that an operator is measured on; operators that are not listed take all."""

WITHOUT_RANK = ("linear", "gram_")
"""Operators that do not depend on the kept fraction."""


def _dense(cell: Cell, n: int, m: int) -> tuple[int, int]:
    return 2 * cell.rows * n * m, cell.size * (cell.rows * (n + m) + n * m)


def _gram(x: Tensor) -> Tensor:
    corner = x[:, : 8 * CHECKED].double()
    return corner.T @ corner


def _compiled(function: Callable, *arguments) -> Callable[[], Tensor]:
    compiled = torch.compile(function, fullgraph=True, dynamic=False)
    return lambda: compiled(*arguments)
