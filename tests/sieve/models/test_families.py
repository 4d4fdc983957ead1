"""Every architecture × every search and method through the command line: pruned, saved, loaded, evaluated."""

import json
from functools import cache

import pytest
import torch
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

import sieve
from sieve import cli
from sieve.errors import InputError
from sieve.models.linears import by_pattern, left_dense, prunable
from tests.all_architectures import tiny_random
from tests.tiny_models import TINY, tiny_model, tiny_tokenizer, tiny_tokens

GENETIC = ("--generations", "2", "--population", "6", "--offspring", "4", "--bottlenecks", "2")
WAYS = {
    "budget": (),
    "uniform": ("--search", "uniform"),
    "ga": ("--search", "ga", *GENETIC),
    "pareto": ("--search", "pareto", *GENETIC),
    "loss_aware": ("--method", "loss_aware"),
    "default": (),
    "refit": ("--refit",),
    "loss_aware refit": ("--method", "loss_aware", "--refit", "--dtype", "bfloat16"),
    "widths": ("--method", "widths"),
    "widths shared ga refit": ("--method", "widths", "--shared-input", "--search", "ga", *GENETIC, "--refit"),
    "svd": ("--method", "svd"),
    "svd_llm": ("--method", "svd_llm", "--no-pivot"),
    "shrinkage": ("--shrinkage", "auto"),
    "shared": ("--shared-input",),
    "shared loss_aware": ("--shared-input", "--method", "loss_aware"),
    "shared ga refit": ("--shared-input", "--search", "ga", *GENETIC, "--kept", "0.5", "--refit"),
    "magnitude": ("--method", "magnitude"),
    "wanda": ("--method", "wanda", "--task-aware"),
    "wanda 2:4": ("--method", "wanda", "--pattern", "2:4"),
    "sparsegpt": ("--method", "sparsegpt"),
    "ria": ("--method", "ria"),
}
FUSED = ("phi3", "gpt2", "gpt_neox")  # q, k and v are one matrix already
WITHOUT_MLP = "mamba2"
UNIFORM = ("--search", "uniform", "--rank-multiple", "4")
# Subclasses of nn.Linear; weights that are read; experts, and a matrix of one row; weights that layers share; an index
# of attention, which has no gradient.
OTHERS = ("falcon", "mamba2", "qwen2_moe", "zamba", "deepseek_v32")


def pairs() -> list:
    """The default way on every family, each other one on one; the whole product is slow."""
    others = [(family, "refit") for family in OTHERS] + [(WITHOUT_MLP, "default")]
    return [pytest.param(family, way) for family, way in others] + [
        pytest.param(family, way, marks=() if way == "budget" or (i + j) % len(TINY) == 0 else pytest.mark.slow)
        for i, family in enumerate(TINY)
        for j, way in enumerate(WAYS)
    ]


def model_of(family: str):
    return tiny_model(family) if family in TINY else tiny_random(family)


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory):
    @cache
    def folder(family: str) -> str:
        path = tmp_path_factory.mktemp("families") / family
        model_of(family).save_pretrained(path)
        tiny_tokenizer().save_pretrained(path)
        return str(path)

    return folder


@torch.inference_mode()
def logits(model):
    return model.eval()(input_ids=tiny_tokens()).logits.float()


@pytest.mark.parametrize(("family", "way"), pairs())
def test_prune_save_load_evaluate(world, folder_of, family, way, tmp_path, monkeypatch):
    monkeypatch.setenv("SIEVE_CACHE", str(tmp_path / "cache"))
    output = str(tmp_path / "pruned")
    options = ("--task", world.task, "--tolerance", "0.9", "--calibration-tokens", "1000", "--rank-multiple", "4")
    # Without a method the options are those of the default preset.
    plain = () if way == "default" or "--method" in WAYS[way] else ("--method", "output_aligned")
    command = ["prune", folder_of(family), *options, *plain, *WAYS[way], "--output", output, "--json"]
    result = CliRunner().invoke(cli.app, command)
    apart = family in (*FUSED, WITHOUT_MLP)
    assert ("none to share" in result.stderr) == (apart and (way == "default" or "shared" in way))
    assert result.exit_code == 0, result.exception
    assert ("no MLP of a known kind" in result.stderr) == (family == WITHOUT_MLP and way == "default")
    report = json.loads(result.stdout)
    assert 0.4 < report["parameters"]["prunable_removed"] < 1
    dense = model_of(family)
    unread = {name: why for name, why in report["left_dense"].items() if "no gradient" in why}
    assert all(family == "deepseek_v32" and ".indexer." in name for name in unread)
    assert report["left_dense"] == by_pattern(left_dense(dense), prunable(dense)) | unread
    assert (family in ("qwen2_moe", "deepseek_v32")) == ("model.layers.*.mlp.experts.down_proj" in report["left_dense"])
    shown = [line for line in CliRunner().invoke(cli.app, ["info", output]).stdout.splitlines() if "Left dense" in line]
    assert len(shown) == bool(report["left_dense"])
    assert all(reason in shown[0] for reason in report["left_dense"].values())
    evaluated = json.loads(CliRunner().invoke(cli.app, ["eval", output, "--json"]).stdout)
    assert {key: evaluated[key] for key in ("accuracy", "loglik")} == {
        key: report[key]["pruned"]["test"] for key in ("accuracy", "loglik")
    }
    loaded, _ = sieve.load(output)
    plain = AutoModelForCausalLM.from_pretrained(output)
    assert torch.equal(logits(loaded), logits(plain))
    assert not torch.allclose(logits(loaded), logits(model_of(family)), atol=1e-2)


def test_rows_that_do_not_divide_are_named(world, tmp_path, monkeypatch):
    monkeypatch.setenv("SIEVE_CACHE", str(tmp_path / "cache"))
    config = tiny_model("llama").config
    config.intermediate_size = 70
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "dense")
    tiny_tokenizer().save_pretrained(tmp_path / "dense")
    recipe = sieve.Recipe(str(tmp_path / "dense"), world.task, 0.9, method="magnitude", pattern="2:4")
    report = sieve.prune(recipe, tmp_path / "pruned")
    assert report["left_dense"] == {"model.layers.*.mlp.down_proj": "its rows do not divide by 2:4"}


def test_no_gradients_no_default_search(world, folder_of, tmp_path, monkeypatch):
    """One line that says what to do, and which then works."""
    monkeypatch.setenv("SIEVE_CACHE", str(tmp_path / "cache"))
    options = ("--task", world.task, "--tolerance", "0.9", "--calibration-tokens", "1000")
    command = ["prune", folder_of("reformer"), *options, "--output", str(tmp_path / "pruned")]
    refused = CliRunner().invoke(cli.app, [*command, "--method", "output_aligned"]).exception
    assert isinstance(refused, InputError)
    assert "use --search uniform" in str(refused)
    result = CliRunner().invoke(cli.app, [*command, "--method", "output_aligned", *UNIFORM])
    assert result.exit_code == 0, result.exception
