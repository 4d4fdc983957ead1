"""Calls that pass PyTorch's dispatcher by: where nothing in it wants to know of them, with the same results."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from sieve_kernels import linear, lowrank_linear, lowrank_linear_group, lowrank_linear_pivoted, lowrank_mlp
from sieve_kernels.core import decisions, library
from sieve_kernels.lowrank import linear as dense

N, M, R = 48, 32, 8


@pytest.fixture
def seen(monkeypatch):
    """Names of the registered operators that are called."""
    decisions.forget()
    found, operator = [], dense._linear
    heard = replace(operator, op=lambda *tensors: (found.append("linear"), operator.op(*tensors))[1])
    monkeypatch.setattr(dense, "_linear", heard)
    return found


@pytest.fixture
def tensors(device):
    return torch.randn(3, N, device=device), torch.randn(M, N, device=device), torch.randn(M, device=device)


class Listening(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        return function(*arguments, **(options or {}))


class ListeningToFunctions(TorchFunctionMode):
    def __torch_function__(self, function, types, arguments=(), options=None):
        return function(*arguments, **(options or {}))


LISTENERS = {
    "mode": Listening,
    "function mode": ListeningToFunctions,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "profiler": lambda: profile(activities=[ProfilerActivity.CPU]),
    "forward gradients": forward_ad.dual_level,
}


@torch.no_grad()
def test_without_listeners_the_dispatcher_is_passed_by(seen, tensors):
    x, W, bias = tensors
    y = linear(*tensors)
    assert torch.equal(linear(x, nn.Parameter(W), bias), y)
    assert not seen
    torch.testing.assert_close(y, nn.functional.linear(*tensors))


@torch.no_grad()
@pytest.mark.parametrize("name", LISTENERS)
def test_listeners_hear_of_calls(seen, tensors, name):
    alone = linear(*tensors)
    with LISTENERS[name]():
        y = linear(*tensors)
    assert seen == ["linear"]
    assert y.dtype == (torch.bfloat16 if name == "autocast" and not tensors[0].is_cuda else alone.dtype)
    torch.testing.assert_close(y.float(), alone, atol=0.2 if name == "autocast" else 1e-5, rtol=1e-2)


@torch.no_grad()
def test_transforms_and_subclasses_hear_of_calls(seen, tensors):
    x, W, bias = tensors

    class Own(torch.Tensor):
        pass

    alone = linear(x, W, bias)
    torch.testing.assert_close(torch.vmap(lambda row: linear(row, W, bias))(x), alone)
    assert seen
    seen.clear()
    assert isinstance(linear(x.as_subclass(Own), W, bias), Own)
    assert seen


def test_gradients_that_are_wanted_are_heard_of(seen, tensors):
    x, W, bias = tensors
    linear(x, W, bias)
    assert not seen
    linear(x, W.requires_grad_(), bias).sum().backward()
    assert seen
    assert W.grad is not None


@torch.no_grad()
def test_lazy_negations_are_carried_out(tensors):
    x, W, bias = tensors
    lazy = torch.complex(x, x).conj().imag
    assert lazy.is_neg()
    plain = torch.empty_strided(lazy.shape, lazy.stride(), device=x.device).copy_(lazy)
    linear(plain, W, bias)  # of the same strides
    torch.testing.assert_close(linear(lazy, W, bias), -linear(x, W, 0 * bias) + bias)


@torch.no_grad()
def test_other_devices_and_layouts(tensors):
    x, W, bias = tensors
    linear(x, W, bias)
    assert linear(*(t.to("meta") for t in tensors)).device.type == "meta"
    with pytest.raises(ValueError, match="share a device"):
        linear(x, W.to("meta"), bias)
    with pytest.raises((RuntimeError, NotImplementedError)):
        linear(x, W.to_sparse(), bias)


@torch.no_grad()
@pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU permutations are not looked at")
@pytest.mark.parametrize("inference", [False, True])
def test_permutations_are_looked_at_on_every_call(inference):
    x, A, C = torch.randn(2, N), torch.randn(R, N), torch.randn(M - R, R)
    with torch.inference_mode(inference):
        permutation = torch.randperm(M)
        for call in (
            lambda: lowrank_linear_pivoted(x, A, C, permutation),
            lambda: lowrank_linear_group(x, [A], [C], permutations=[permutation]),
            lambda: lowrank_mlp(x, (A, C, permutation), (torch.randn(M, N),), (torch.randn(5, M),)),
        ):
            permutation.copy_(torch.randperm(M))
            call()
            permutation[0] = permutation[1]
            with pytest.raises(ValueError, match="a value twice"):
                call()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("rows", [1, 40])
def test_outputs_without_gradients_may_be_changed_in_place(dtype, rows, device):
    def make(*shape):
        return torch.randn(shape, device=device, dtype=dtype)

    x, A, B = make(2, rows, N), make(R, N), make(M, R)
    with torch.no_grad():
        ys = [lowrank_linear(x, A, B), linear(x, make(M, N)), *lowrank_linear_group(x, [A, A], [B, B])]
        ys.append(lowrank_linear_pivoted(x, A, make(M - R, R), torch.randperm(M, device=device)))
        ys.append(lowrank_mlp(x, (A, B), (A, B), (make(N, M),)))
    for y in ys:
        leaf = torch.ones(y.shape[-1], device=device, dtype=dtype, requires_grad=True)
        y.mul_(leaf).sum().backward()
        assert leaf.grad is not None


@torch.no_grad()
@pytest.mark.skipif(library.library() is None, reason=library.status())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pivoted_groups_are_one_by_one(dtype):
    x = torch.randn(1, 3, N).to(dtype)
    As, Cs = [torch.randn(R, N).to(dtype) for _ in "qkv"], [torch.randn(m - R, R).to(dtype) for m in (M, 16, 16)]
    orders, biases = [torch.randperm(m) for m in (M, 16, 16)], [torch.randn(m).to(dtype) for m in (M, 16, 16)]
    for some in (None, biases, [None, *biases[1:]]):
        group = lowrank_linear_group(x, As, Cs, some, orders)
        each = [lowrank_linear_pivoted(x, *of) for of in zip(As, Cs, orders, some or [None] * 3, strict=True)]
        assert all(torch.equal(one, other) for one, other in zip(group, each, strict=True))


@torch.no_grad()
@pytest.mark.skipif(library.library() is None, reason=library.status())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_operands_that_must_be_copied(dtype):
    """Rows that are not in one piece, in tensors that otherwise look like those of an earlier call."""

    def make(*shape):
        return torch.randn(shape).to(dtype)

    A, B, bias = make(R, N), make(M, R), make(M)
    for x in (make(2, 3, N), make(3, 2, N).transpose(0, 1), make(2, 3, 2 * N)[..., :N], make(2, 1, N).expand(2, 3, N)):
        expected = lowrank_linear(x.contiguous(), A, B, bias)
        for _ in range(2):
            assert torch.equal(lowrank_linear(x, A, B, bias), expected)
            assert torch.equal(lowrank_linear(x, A.T.contiguous().T, B.T.contiguous().T, bias), expected)
            assert torch.equal(lowrank_linear(x, A, B, torch.stack([bias, bias], 1)[:, 0]), expected)
