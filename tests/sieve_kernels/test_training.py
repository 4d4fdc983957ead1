"""Layers of which gradients are wanted, of many rows, on a GPU: no product is repeated; behaviour inside torch."""

import pytest
import torch
from gradients import check_gradients
from operators import DTYPES, LAYERS, outputs_of
from pairwise import pairwise
from torch.utils._python_dispatch import TorchDispatchMode

from sieve_kernels.core import dispatch
from sieve_kernels.lowrank import training
from sieve_kernels.pointwise import reference
from sieve_kernels.pointwise.joints import act_mul, join_columns

BOTH = ("torch", "triton")


@pytest.fixture
def trained(monkeypatch):
    """As if tensors were of many rows on a GPU, nothing asked for, and so many that kernels of ours serve."""
    monkeypatch.delenv(dispatch.VARIABLE, raising=False)
    monkeypatch.setattr(training, "_many_on_gpu", lambda x: True)
    monkeypatch.setattr(training, "FEW_ELEMENTS", 0)


def make(*shapes, dtype=torch.float32, device="cpu"):
    return [torch.randn(s, device=device).mul(s[-1] ** -0.5).to(dtype) for s in shapes]


class _Products(TorchDispatchMode):
    """Counts the matrix products that torch is asked for."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.name().removeprefix("aten::").split(".")[0]
        self.count += name in ("mm", "addmm", "addmm_", "linear", "matmul")
        return function(*args, **kwargs or {})


@pytest.mark.parametrize("name", LAYERS)
def test_no_product_is_repeated(name, trained, device):
    """Twice as many products back as forth: none is formed again."""
    operator = LAYERS[name]
    tensors = operator.make((7,), 24, 20, 6, device=device)
    for i in operator.leaves(tensors):
        tensors[i].requires_grad_()
    with _Products() as forth:
        y = sum(y.sum() for y in outputs_of(operator.ours(*tensors)))
    with _Products() as back:
        y.backward()
    assert (forth.count, back.count) == (operator.products, 2 * operator.products)


def test_where_it_is_done(monkeypatch):
    """Only where gradients are wanted, of many rows, on a GPU, and where nothing else is asked for."""
    weight = torch.zeros(2, 2, requires_grad=True)
    monkeypatch.delenv(dispatch.VARIABLE, raising=False)
    assert not training.by_library(torch.zeros(1000, 2), weight)
    monkeypatch.setattr(training, "_many_on_gpu", lambda x: True)
    assert training.by_library(torch.zeros(1000, 2), weight, None)
    assert training.by_library(torch.zeros(2, 2, requires_grad=True), None)
    assert not training.by_library(torch.zeros(2, 2), weight.detach())
    with torch.no_grad():
        assert not training.by_library(torch.zeros(2, 2), weight)
    for name, taken in (("torch", True), ("triton", False), ("triton_fused", False)):
        monkeypatch.setenv(dispatch.VARIABLE, name)
        assert training.by_library(torch.zeros(2, 2), weight) == taken


@pairwise(
    implementation=BOTH,
    dtype=DTYPES,
    activation=reference.ACTIVATIONS,
    shape=[(2, 17, 50), (150, 33), (70,), (0, 5)],
)
def test_act_mul(implementation, dtype, activation, shape, device):
    gate, up = torch.randn(*shape[:-1], 2 * shape[-1], device=device).to(dtype).chunk(2, -1)
    ours, definition = (lambda *t, f=f: f(*t, activation) for f in (act_mul, reference.act_mul))
    check_gradients(ours, definition, [gate, up])


@pairwise(
    implementation=BOTH,
    dtype=DTYPES,
    biased=[True, False],
    shape_and_r=[((2, 17, 50), 20), ((150, 33), 1), ((70,), 70), ((0, 5), 2)],
)
def test_join_columns(implementation, dtype, shape, r, biased, device):
    m = shape[-1]
    z, c = torch.randn(shape, device=device).to(dtype).split((r, m - r), -1)
    bias = torch.randn(m, device=device).to(dtype) if biased else None
    permutation = torch.randperm(m, device=device)

    def definition(z, c, bias):
        y = torch.cat([z, c], -1)[..., torch.argsort(permutation)]
        return y if bias is None else y + bias

    check_gradients(lambda z, c, bias: join_columns(z, c, permutation, bias), definition, [z, c, bias])


def test_few_numbers_are_left_to_torch(trained, monkeypatch):
    """Which the host enqueues sooner; where they are many, gate and up alone are kept."""
    gate, up = (t.requires_grad_() for t in make((2, 4), (2, 4)))
    assert "ActMul" in training.gated(gate, up, "silu").grad_fn.name()
    monkeypatch.setattr(training, "FEW_ELEMENTS", 8)
    assert training.gated(gate, up, "silu").grad_fn.name() == "MulBackward0"


def test_results_may_be_changed_in_place(device):
    gate, up, z, c = (t.requires_grad_() for t in make((2, 3, 4), (2, 3, 4), (2, 3, 2), (2, 3, 4), device=device))
    permutation = torch.randperm(6, device=device)
    for y, leaf in ((act_mul(gate, up, "silu"), up), (join_columns(z, c, permutation, None), z)):
        (once,) = torch.autograd.grad(y.sum(), leaf, retain_graph=True)
        (twice,) = torch.autograd.grad(y.mul_(2).sum(), leaf)
        assert torch.equal(twice, 2 * once)


def test_gradients_twice():
    gate, up, z, c, bias = (t.double().requires_grad_() for t in make((3, 4), (3, 4), (3, 2), (3, 4), (6,)))
    permutation = torch.randperm(6)
    for activation in ("silu", "gelu", "gelu_tanh"):
        assert torch.autograd.gradgradcheck(lambda *t, a=activation: act_mul(*t, a), (gate, up))
    assert torch.autograd.gradgradcheck(lambda z, c, bias: join_columns(z, c, permutation, bias), (z, c, bias))


def test_columns_outside_are_not_read(device):
    """What a GPU's host does not look at."""
    kernels = pytest.importorskip("sieve_kernels.pointwise.triton_columns")
    z, c = torch.ones(3, 4, device=device), torch.full((3, 5), 2.0, device=device)
    y = kernels.join_columns(z, c, torch.tensor([0, 3, 4, 8, 9, -1, 10**9, 1, 5], device=device), None)
    assert y[0].tolist() == [1, 1, 2, 2, 0, 0, 0, 1, 2]
