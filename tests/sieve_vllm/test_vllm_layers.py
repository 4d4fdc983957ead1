"""vLLM's own layer classes on a CPU, each rank of tensor parallelism by itself, against the pruned layers' outputs."""

import pytest
import torch
from torch import nn

from sieve.nn.low_rank import LowRankLinear, PivotedLinear
from tests.sieve_vllm.served import served

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("vllm")]

N, HEAD, HEADS, KV = 48, 4, 6, 2


def pair(kind, m, n, rank, bias=False):
    layer = kind(n, m, rank, bias) if kind is not nn.Linear else nn.Linear(n, m, bias)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_()
        if kind is PivotedLinear:
            layer.permutation.copy_(torch.randperm(m))
    return layer


def qkv(bias=False):
    from vllm.model_executor.layers.linear import QKVParallelLinear

    return lambda **options: QKVParallelLinear(N, HEAD, HEADS, KV, bias=bias, params_dtype=torch.float32, **options)


def close(found, wanted):
    torch.testing.assert_close(found, wanted, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("size", [1, 2, 3, 6])
@pytest.mark.parametrize(
    "kinds",
    [(PivotedLinear,) * 3, (LowRankLinear, nn.Linear, LowRankLinear), (PivotedLinear, nn.Linear, PivotedLinear)],
)
@pytest.mark.parametrize("bias", [False, True])
@torch.no_grad()
def test_query_key_and_value_of_different_ranks(monkeypatch, kinds, size, bias):
    """At 3 and 6 ranks there are fewer key-value heads than ranks: they are replicated."""
    if size == 3:
        pytest.skip("vLLM does not split 2 key-value heads over 3 ranks")
    heights = (HEADS * HEAD, KV * HEAD, KV * HEAD)
    layers = {
        key: pair(kind, m, N, 3 + i, bias) for i, (key, kind, m) in enumerate(zip("qkv", kinds, heights, strict=True))
    }
    x = torch.randn(5, N)
    whole = [layer(x) for layer in layers.values()]
    for rank in range(size):
        layer = served(monkeypatch, qkv(bias), "qkv_proj", layers, rank, size)
        y, _ = layer(x)
        here = [HEADS // size * HEAD] + [max(KV // size, 1) * HEAD] * 2
        places = [rank, rank // max(size // KV, 1), rank // max(size // KV, 1)]
        wanted = [
            part[:, place * rows : (place + 1) * rows] for part, place, rows in zip(whole, places, here, strict=True)
        ]
        close(y, torch.cat(wanted, -1))
        assert layer.weight.shape == (sum(here), N)


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("kind", [PivotedLinear, LowRankLinear])
@torch.no_grad()
def test_a_stack_is_one_pair_cut_by_the_sizes_of_its_members(monkeypatch, kind, size):
    stack = pair(kind, (HEADS + 2 * KV) * HEAD, N, 9)
    x = torch.randn(5, N)
    parts = stack(x).split([HEADS * HEAD, KV * HEAD, KV * HEAD], -1)
    for rank in range(size):
        y, _ = served(monkeypatch, qkv(), "qkv_proj", {None: stack}, rank, size)(x)
        close(y, torch.cat([part.chunk(size, -1)[rank] for part in parts], -1))


@pytest.mark.parametrize("size", [1, 3])
@torch.no_grad()
def test_gate_and_up(monkeypatch, size):
    from vllm.model_executor.layers.linear import MergedColumnParallelLinear

    def make(**options):
        return MergedColumnParallelLinear(N, [24, 24], bias=False, params_dtype=torch.float32, **options)

    layers = {0: pair(PivotedLinear, 24, N, 5), 1: pair(PivotedLinear, 24, N, 11)}
    x = torch.randn(5, N)
    for rank in range(size):
        y, _ = served(monkeypatch, make, "gate_up_proj", layers, rank, size)(x)
        close(y, torch.cat([layer(x).chunk(size, -1)[rank] for layer in layers.values()], -1))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("r", [5, 24])
@pytest.mark.parametrize("size", [1, 3])
@torch.no_grad()
def test_layers_whose_input_is_split_sum_the_shorter_of_z_and_y(monkeypatch, size, r, bias):
    import sieve_vllm.linear
    from vllm.model_executor.layers import linear
    from vllm.model_executor.layers.linear import RowParallelLinear

    def make(**options):
        return RowParallelLinear(N, 24, bias=bias, params_dtype=torch.float32, **options)

    one = pair(PivotedLinear, 24, N, r, bias)
    x = torch.randn(5, N)
    layers = [served(monkeypatch, make, "o_proj", {None: one}, rank, size) for rank in range(size)]
    assert [layer.quant_method.reduces for layer in layers] == [size > 1 and r < 24] * size
    sent, total = [], None

    def all_reduce(tensor):
        sent.append(tensor)
        return tensor if total is None else total

    monkeypatch.setattr(sieve_vllm.linear, "tensor_model_parallel_all_reduce", all_reduce)
    monkeypatch.setattr(linear, "tensor_model_parallel_all_reduce", all_reduce)
    shares = x.chunk(size, -1)
    for layer, share in zip(layers, shares, strict=True):
        layer(share)
    if size > 1:
        assert len(sent) == size
        assert {tensor.shape[-1] for tensor in sent} == {min(r, 24)}
        total = sum(sent)
    for layer, share in zip(layers, shares, strict=True):
        close(layer(share)[0], one(x))


@pytest.mark.parametrize("kind", [PivotedLinear, LowRankLinear])
@torch.no_grad()
def test_a_bias_for_which_the_architecture_has_no_place(monkeypatch, kind):
    layers = {
        key: pair(kind, m, N, 3, True) for key, m in zip("qkv", (HEADS * HEAD, KV * HEAD, KV * HEAD), strict=True)
    }
    x = torch.randn(5, N)
    layer = served(monkeypatch, qkv(), "qkv_proj", layers, 0, 1, through_loader=True)
    close(layer(x)[0], torch.cat([one(x) for one in layers.values()], -1))


@torch.no_grad()
def test_what_a_checkpoint_lacks_is_named(monkeypatch):
    layers = {key: pair(PivotedLinear, m, N, 3) for key, m in zip("qkv", (24, 8, 8), strict=True)}
    state = layers["k"].state_dict()
    monkeypatch.setattr(layers["k"], "state_dict", lambda: {"A.weight": state["A.weight"]})
    with pytest.raises(ValueError, match=r"no C.weight for block.qkv_proj \(k\)"):
        served(monkeypatch, qkv(), "qkv_proj", layers, 0, 1)
