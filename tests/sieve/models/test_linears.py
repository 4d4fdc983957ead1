"""Which layers of a model are pruned: by what they do and how they are used, whatever they are called."""

import pytest
import torch
from torch import nn

from sieve.calibration.collect import collect
from sieve.calibration.text import Sample, batches
from sieve.compression.apply import apply_
from sieve.compression.low_rank.project import project
from sieve.compression.plan import Plan
from sieve.errors import InputError
from sieve.models.linears import by_pattern, left_dense, prunable
from sieve.nn.low_rank import LowRankLinear, PivotedLinear
from sieve.utils import progress
from tests.all_architectures import tiny_random
from tests.tiny_models import tiny_model, tiny_tokens

SEQUENCES = [Sample(ids, 20) for ids in tiny_tokens(16, 24).tolist()]
UP = "model.layers.1.mlp.up_proj"


class SpeltOut(nn.Linear):
    """As Falcon's: the same map, in other words."""

    def forward(self, x):
        return x @ self.weight.T if self.bias is None else x @ self.weight.T + self.bias


class Renamed(nn.Linear):
    """Nothing of its own."""


class Scaled(nn.Linear):
    """Another map."""

    def forward(self, x):
        return 2 * super().forward(x)


class Gated(nn.Linear):
    """The map of nn.Linear, with a parameter beside it."""

    def __init__(self, *shape, **options):
        super().__init__(*shape, **options)
        self.gate = nn.Parameter(torch.zeros(()))


def with_layer(kind) -> nn.Module:
    model = tiny_model("llama")
    layer = kind(32, 72, bias=False)
    layer.weight = model.get_submodule(UP).weight
    model.model.layers[1].mlp.up_proj = layer
    return model


@pytest.mark.parametrize("kind", [SpeltOut, Renamed])
def test_subclasses_that_are_linear_layers_are_pruned(kind):
    model, plain = with_layer(kind), tiny_model("llama")
    assert list(prunable(model)) == list(prunable(plain))
    statistics = [collect(one, batches(SEQUENCES, 512)) for one in (model, plain)]
    pruned = [apply_(one, project(one, known), {UP: 8}) for one, known in zip((model, plain), statistics, strict=True)]
    assert type(model.get_submodule(UP)) is LowRankLinear
    ours, theirs = (one(input_ids=tiny_tokens()).logits for one in pruned)
    assert torch.allclose(ours, theirs, atol=1e-4)


@pytest.mark.parametrize("kind", [Scaled, Gated])
def test_subclasses_of_another_meaning_stay_dense(kind):
    model = with_layer(kind)
    assert left_dense(model) == {UP: f"no plain linear layer ({kind.__name__})"}
    assert set(prunable(tiny_model("llama"))) - set(prunable(model)) == {UP}


def test_quantised_weights_stay_dense():
    model = tiny_model("llama")
    layer = model.get_submodule(UP)
    layer.weight = nn.Parameter(layer.weight.data.to(torch.float8_e4m3fn), requires_grad=False)
    model.model.layers[1].mlp.forward = lambda x: x  # float8 cannot be multiplied here
    assert left_dense(model)[UP].startswith("no plain linear layer")


def test_a_weight_that_other_code_reads_stays_dense():
    model = tiny_model("llama")
    mlp = model.model.layers[1].mlp
    mlp.forward = lambda x: mlp.down_proj(nn.functional.linear(x, mlp.up_proj.weight) * mlp.gate_proj(x))
    assert left_dense(model) == {UP: "weight read by other code than the layer itself"}
    assert torch.isfinite(model(input_ids=tiny_tokens()).logits).all()  # the layers are back in their places
    assert type(model.get_submodule(UP)) is nn.Linear


def test_layers_that_are_not_called_or_called_twice_stay_dense():
    model = tiny_model("llama")
    mlp = model.model.layers[1].mlp
    mlp.forward = lambda x: mlp.down_proj(mlp.gate_proj(x) * mlp.gate_proj(x))
    assert left_dense(model) == {
        UP: "not called in a forward pass over text",
        "model.layers.1.mlp.gate_proj": "called several times in one forward pass",
    }


def test_experts_stay_dense_whichever_see_the_tokens():
    model = tiny_model("llama")
    mlp = model.model.layers[1].mlp
    mlp.experts = nn.ModuleList(nn.Linear(32, 32, bias=False) for _ in range(3))
    own = type(mlp).forward

    def forward(x):
        rows = x.reshape(-1, 32)
        some = torch.cat([mlp.experts[0](rows[:5]), mlp.experts[1](rows[5:])])  # and nothing for the last
        return own(mlp, x) + some.reshape(x.shape)

    mlp.forward = forward
    left = left_dense(model)
    assert set(left) == {f"model.layers.1.mlp.experts.{i}" for i in range(3)}
    assert all("experts of a mixture" in reason for reason in left.values())


def test_one_tensor_of_many_experts_is_named():
    left = left_dense(tiny_random("mixtral"))
    assert set(left) == {
        f"model.layers.{i}.mlp.experts.{name}" for i in range(4) for name in ("gate_up_proj", "down_proj")
    }
    assert set(left.values()) == {"several matrices in one tensor, as experts of a mixture are"}


def test_a_matrix_of_one_row_stays_dense():
    left = left_dense(tiny_random("qwen2_moe"))
    gates = (f"model.layers.{i}.mlp.shared_expert_gate" for i in range(4))
    gates = dict.fromkeys(gates, "no pair is smaller than a single row or column")
    assert gates.items() <= left.items()


def test_weights_that_layers_share_stay_dense():
    """Pruning one would leave the other its whole weight, and save neither's tie."""
    model = tiny_model("llama")
    model.model.layers[0].mlp.up_proj.weight = model.get_submodule(UP).weight
    assert left_dense(model) == dict.fromkeys(
        ("model.layers.0.mlp.up_proj", UP), "its weight is also that of another layer"
    )
    model.get_submodule(UP).weight = nn.Parameter(model.get_submodule(UP).weight.detach().clone())
    assert not left_dense(model)


def test_blocks_are_named_together_where_all_have_one_reason():
    left = {
        "a.0.x": "read",
        "a.1.x": "read",
        "a.0.y": "read",
        "a.0.z": "read",
        "a.1.z": "tied",
        "a.0.e.0": "e",
        "a.0.e.1": "e",
    }
    assert by_pattern(left, ["a.1.y", "a.0.w"]) == {
        "a.*.x": "read", "a.0.y": "read", "a.0.z": "read", "a.1.z": "tied", "a.*.e.*": "e"
    }  # fmt: skip


def test_the_user_is_told_once(capsys):
    model = tiny_random("mamba")
    with progress.shown():
        prunable(model)
        prunable(model)
    told = "backbone.layers.*.mixer.dt_proj stays dense: bias and weight read by other code than the layer itself"
    assert capsys.readouterr().err == f"  note: {told}\n"


def test_where_all_stays_dense_the_message_says_why():
    with pytest.raises(
        InputError, match=r"nothing to prune: .*layer_2 stay dense: not given one row a token"
    ) as caught:
        prunable(tiny_random("xlnet"))
    assert "\n" not in str(caught.value)


def test_a_model_that_does_not_run_over_text():
    model = tiny_model("llama")
    model.model.layers[1].mlp.up_proj = nn.Linear(31, 72, bias=False)
    with pytest.raises(InputError, match=r"LlamaForCausalLM does not run over plain text \(mat1 and mat2"):
        prunable(model)


def test_blocks_of_the_text_decoder_go_before_those_of_an_image_encoder():
    assert all(name.startswith("model.language_model.layers.") for name in prunable(tiny_random("gemma3")))


@pytest.mark.parametrize("pivoted", [False, True])
@pytest.mark.parametrize("name", ["gpt2", "qwen2"])
def test_a_pair_has_the_weight_that_it_multiplies_by(name, pivoted):
    """For code that reads a weight: on devices with kernels of their own, or as transformers initialises."""
    model = tiny_model(name)
    factors = project(model, collect(model, batches(SEQUENCES, 512)), pivot=pivoted)
    apply_(model, factors, Plan(dict.fromkeys(factors, 6), pivoted=pivoted))
    kind = PivotedLinear if pivoted else LowRankLinear
    for layer in (module for module in model.modules() if isinstance(module, kind)):
        x = torch.randn(3, layer.in_features)
        assert torch.allclose(nn.functional.linear(x, layer.weight, layer.bias), layer(x), atol=1e-4)
