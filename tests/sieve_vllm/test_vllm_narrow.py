"""MLPs that have lost channels in vLLM's own layers on a CPU, each rank of tensor parallelism by itself."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from sieve.nn.low_rank import LowRankLinear
from sieve.nn.narrow import NarrowLinear
from tests.sieve_vllm.served import entry, served

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("vllm")]

N, CHANNELS = 48, 96


def narrow(m, n, bias=False):
    layer = NarrowLinear(n, m, bias)
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    return layer


def gate_up(bias=False):
    from vllm.model_executor.layers.linear import MergedColumnParallelLinear

    return lambda **options: MergedColumnParallelLinear(
        N, [CHANNELS] * 2, bias=bias, params_dtype=torch.float32, **options
    )


def up(**options):
    from vllm.model_executor.layers.linear import ColumnParallelLinear

    return ColumnParallelLinear(N, CHANNELS, params_dtype=torch.float32, **options)


def down(bias=False):
    from vllm.model_executor.layers.linear import RowParallelLinear

    return lambda **options: RowParallelLinear(CHANNELS, N, bias=bias, params_dtype=torch.float32, **options)


def without_sum(monkeypatch):
    """Each rank's own part of the output."""
    from vllm.model_executor.layers import linear

    monkeypatch.setattr(linear, "tensor_model_parallel_all_reduce", lambda tensor: tensor)


def gated(y):
    gate, up = y.chunk(2, -1)
    return nn.functional.silu(gate) * up


def close(found, wanted):
    torch.testing.assert_close(found, wanted, atol=2e-3, rtol=1e-4)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("in_one", [False, True], ids=["gate and up", "one matrix"])
@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("width", [48, 21, 5])
@torch.no_grad()
def test_a_gated_mlp_of_any_width(monkeypatch, width, size, in_one, bias):
    """Also widths that the ranks do not divide, and fewer channels than there are ranks of eight."""
    without_sum(monkeypatch)
    gate, upper, lower = narrow(width, N, bias), narrow(width, N, bias), narrow(N, width, bias)
    parts = {0: gate, 1: upper}
    if in_one:
        parts = {None: narrow(2 * width, N, bias)}
        parts[None].load_state_dict({
            name: torch.cat([tensor, upper.state_dict()[name]]) for name, tensor in gate.state_dict().items()
        })  # fmt: skip
    x, total = torch.randn(5, N), 0
    for rank in range(size):
        first = served(monkeypatch, gate_up(bias), "gate_up_proj", parts, rank, size, through_loader=True)
        second = served(monkeypatch, down(bias), "down_proj", {None: lower}, rank, size)
        y = first(x)[0]
        # No more than the eights that the ranks share.
        assert y.shape[-1] == 2 * -(-width // (8 * size)) * 8
        assert first.weight.shape == (y.shape[-1], N)
        assert second.weight.shape == (N, y.shape[-1] // 2)
        total = total + second(gated(y))[0]
    close(total, lower(nn.functional.silu(gate(x)) * upper(x)))


@pytest.mark.parametrize("size", [1, 3])
@torch.no_grad()
def test_an_mlp_of_two_matrices_as_of_opt_and_gpt2(monkeypatch, size):
    """The loader of GPT-2 transposes every weight of an MLP: matrices of pruned layers are turned back."""
    without_sum(monkeypatch)
    upper, lower = narrow(N, N, True), narrow(N, N, True)
    x, total = torch.randn(5, N), 0
    for rank in range(size):
        layers = [(up, "fc1", upper), (down(True), "fc2", lower)]
        first, second = (served(monkeypatch, make, name, {None: one}, rank, size) for make, name, one in layers)
        for (_, _, one), layer in zip(layers, (first, second), strict=True):
            layer.weight.data.zero_()
            layer.weight_loader(layer.weight, one.weight.t())
        total = total + second(nn.functional.gelu(first(x)[0]))[0]
    close(total, lower(nn.functional.gelu(upper(x))))


@pytest.mark.parametrize("size", [1, 2])
@torch.no_grad()
def test_a_bias_for_which_the_architecture_has_no_place(monkeypatch, size):
    """As a last matrix has that is fitted to what its inputs and outputs are beyond their means."""
    without_sum(monkeypatch)
    lower, x = narrow(N, 32, True), torch.randn(5, 32)
    layers = [served(monkeypatch, down(), "down_proj", {None: lower}, rank, size, True) for rank in range(size)]
    close(sum(layer(share)[0] for layer, share in zip(layers, x.chunk(size, -1), strict=True)), lower(x))


@pytest.mark.parametrize("size", [1, 2])
@torch.no_grad()
def test_adapters_find_the_rows_and_columns_of_each_rank(monkeypatch, size):
    from vllm.lora.layers import MergedColumnParallelLinearWithLoRA, RowParallelLinearWithLoRA

    width, rank_of_adapter = 21, 4
    lora = SimpleNamespace(max_lora_rank=8, lora_dtype=torch.float32, fully_sharded_loras=False)
    A, B = [torch.randn(rank_of_adapter, N) for _ in range(2)], [torch.randn(width, rank_of_adapter) for _ in range(2)]
    A_down, B_down = torch.randn(rank_of_adapter, width), torch.randn(N, rank_of_adapter)
    rows, columns = [], []
    for rank in range(size):
        parts = {0: narrow(width, N), 1: narrow(width, N)}
        first = MergedColumnParallelLinearWithLoRA(served(monkeypatch, gate_up(), "gate_up_proj", parts, rank, size))
        second = RowParallelLinearWithLoRA(
            served(monkeypatch, down(), "down_proj", {None: narrow(N, width)}, rank, size)
        )
        for layer, adapter in ((first, (A, B)), (second, (A_down, B_down))):
            layer.create_lora_weights(1, lora)
            layer.set_lora(0, *adapter)
        assert sum(first.output_slices) == first.base_layer.weight.shape[0]
        assert second.lora_a_stacked[0].shape[-1] == second.base_layer.weight.shape[1]
        rows.append([b[0, 0] @ a[0, 0] for a, b in zip(first.lora_a_stacked, first.lora_b_stacked, strict=True)])
        columns.append(second.lora_b_stacked[0][0, 0] @ second.lora_a_stacked[0][0, 0])
    for index in range(2):
        found = torch.cat([one[index] for one in rows])
        close(found[:width], B[index] @ A[index])
        assert not found[width:].any()
    found = torch.cat(columns, -1)
    close(found[:, :width], B_down @ A_down)
    assert not found[:, width:].any()


def test_adapters_of_one_matrix_for_gate_and_up_are_refused_where_zeros_stand_between_them(monkeypatch):
    from vllm.config import get_current_vllm_config

    parts = {None: narrow(2 * 24, N)}
    monkeypatch.setattr(get_current_vllm_config(), "lora_config", SimpleNamespace())
    served(monkeypatch, gate_up(), "gate_up_proj", parts, 0, 1, through_loader=True)
    with pytest.raises(ValueError, match=r"do not divide by the 2 ranks, where adapters .* are not served"):
        served(monkeypatch, gate_up(), "gate_up_proj", parts, 0, 2, through_loader=True)


def test_what_cannot_be_is_said_in_one_line(monkeypatch):
    from vllm.model_executor.layers.linear import QKVParallelLinear

    def qkv(**options):
        return QKVParallelLinear(N, 4, 6, 2, bias=False, params_dtype=torch.float32, **options)

    def refused(match, make, name, layers):
        with pytest.raises(ValueError, match=match) as caught:
            served(monkeypatch, make, name, layers, 0, 1, through_loader=name == "gate_up_proj")
        assert "\n" not in str(caught.value)

    refused("QKVParallelLinear cannot: serve", qkv, "qkv_proj", {None: narrow(24, N)})
    refused("ColumnParallelLinear cannot: serve", gate_up(), "gate_up_proj", {None: narrow(48, N - 1)})
    refused("RowParallelLinear cannot: serve", down(), "down_proj", {None: narrow(N - 8, 24)})
    refused("mixes the files of different models", down(), "down_proj", {None: narrow(N, CHANNELS + 8)})
    refused("mixes the files of different models", gate_up(), "gate_up_proj", {None: narrow(47, N)})
    refused("have lost different channels", gate_up(), "gate_up_proj", {0: narrow(24, N), 1: narrow(16, N)})
    refused("have lost different channels", gate_up(), "gate_up_proj", {0: narrow(24, N), 1: nn.Linear(N, CHANNELS)})
    refused("have lost different", gate_up(), "gate_up_proj", {0: narrow(24, N), 1: LowRankLinear(N, CHANNELS, 4)})
    wrong = narrow(N, 24)
    monkeypatch.setattr(wrong, "state_dict", lambda: {"weight": torch.zeros(N, 16)})
    refused(r"has \(48, 16\) for block.down_proj where config.json says \(48, 24\)", down(), "down_proj", {None: wrong})
    assert entry(wrong) == {"format": "narrow", "inputs": 24, "outputs": N}
