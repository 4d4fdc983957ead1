"""`sieve prune --quantize`: report, evaluation and folder are those of the quantised model."""

import json

import pytest
import torch
from safetensors.torch import load_file

import sieve
from sieve.checkpoint.size import model_bytes, model_parameters
from sieve.compression.low_rank.config import QUANTIZED
from sieve.nn.formats.quantized_pair import BITS
from tests.sieve.test_cli import options, run  # noqa: F401


def test_the_names_are_the_same():
    assert tuple(BITS) == QUANTIZED


@pytest.mark.parametrize("kind", QUANTIZED)
def test_report_evaluation_and_folder_agree(run, world, tmp_path, kind):  # noqa: F811
    output = tmp_path / "m"
    code, out, err = run(*options(world, output), "--search", "uniform", "--quantize", kind, "--json")
    assert code == 0, err
    report = json.loads(out)
    assert report["quantization"]["kind"] == kind
    weights = load_file(output / "sieve.safetensors")
    assert report["bytes"]["pruned"] == sum(tensor.nbytes for tensor in weights.values())
    assert report["quantization"]["before"]["accuracy"].keys() == report["accuracy"]["pruned"].keys()
    assert report["seconds"]["quantize"] > 0
    result = json.loads(run("eval", output, "--json")[1])
    assert result["accuracy"] == report["accuracy"]["pruned"]["test"]
    assert result["loglik"] == report["loglik"]["pruned"]["test"]
    assert f"The pairs are quantised ({kind}); before:" in run("info", output)[1]
    assert sieve.Recipe.load(output / "recipe.yaml").quantize == kind
    model, _ = sieve.load(output)
    assert model_bytes(model) == report["bytes"]["pruned"]
    floats = sum(parameter.numel() for parameter in model.parameters())
    assert model_parameters(model) > floats  # the integers count
    code, _, err = run("heal", output, "--output", tmp_path / "healed")
    assert (code, "is quantised: heal the model" in err) == (2, True)
    code, _, err = run("prune", output, "--task", world.task, "--output", tmp_path / "again")
    assert (code, "pruned already" in err) == (2, True)
    assert torch.is_floating_point(next(model.parameters()))


@pytest.mark.parametrize(
    ("given", "words"),
    [(("--quantize", "int3"), "int8"), (("--quantize", "int8", "--method", "wanda"), "--quantize")],
)
def test_bad_input(run, world, tmp_path, given, words):  # noqa: F811
    code, _, err = run(*options(world, tmp_path / "m"), *given)
    assert code == 2
    assert words in err
    assert not (tmp_path / "m").exists()
