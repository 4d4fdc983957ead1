"""Exports: what other tools read; and that one more format is one more file."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import sieve
from sieve import cli
from sieve.checkpoint import exporters
from sieve.checkpoint.export import export, export_formats
from sieve.checkpoint.folder import save
from sieve.checkpoint.multiply_out import multiply_out_
from sieve.errors import InputError, StorageError
from sieve.models.linears import prunable
from sieve.nn.formats.base import formats_of
from sieve.nn.stacked import stacks
from tests.tiny_models import TINY, tiny_model, tiny_pruned, tiny_tokenizer, tiny_tokens

TOY = str(Path(__file__).parent / "toy_exporters")


@torch.no_grad()
def logits(model):
    return model(tiny_tokens()).logits


@pytest.mark.parametrize("pivoted", [False, True])
@pytest.mark.parametrize("name", TINY)
def test_multiplied_out(name, pivoted):
    """The architecture's own modules and tensors, with equal outputs."""
    model, dense = tiny_pruned(name, pivoted=pivoted), tiny_model(name)
    expected = logits(model)
    assert multiply_out_(model) is model
    shapes = {key: (tensor.shape, tensor.dtype) for key, tensor in model.state_dict().items()}
    assert shapes == {key: (tensor.shape, tensor.dtype) for key, tensor in dense.state_dict().items()}
    kinds = [type(module) for module in model.modules()]
    assert kinds == [type(module) for module in dense.modules()]
    torch.testing.assert_close(logits(model), expected, rtol=1e-3, atol=1e-3)
    assert not hasattr(model.config, "quantization_config")
    assert list(prunable(model)) == list(prunable(dense))


@pytest.mark.parametrize("pruned", [False, True])
def test_stacks_are_taken_apart(pruned, tmp_path):
    model = sieve.share_inputs_(tiny_model("qwen2"))
    if pruned:
        masks = sieve.mask(model, None, "magnitude")
        sieve.apply_(model, masks, sieve.Plan.uniform(masks.matrices(model).values(), 0.5))
    expected = logits(model)
    save(model, tiny_tokenizer(), tmp_path / "m")
    export(tmp_path / "m", tmp_path / "dense", "dense")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "dense")
    assert stacks(loaded) == {}
    assert loaded.state_dict().keys() == tiny_model("qwen2").state_dict().keys()
    torch.testing.assert_close(logits(loaded), expected, rtol=1e-4, atol=1e-4)


def test_a_dense_export_needs_no_sieve(folder, tmp_path):
    export(folder, tmp_path / "dense", "dense")
    assert "quantization_config" not in json.loads((tmp_path / "dense" / "config.json").read_text())
    script = """
import sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
assert AutoTokenizer.from_pretrained(sys.argv[1]).pad_token == "<pad>"
assert not [name for name in sys.modules if name.partition(".")[0] == "sieve"]
torch.save(model(torch.load(sys.argv[2])).logits.detach(), sys.argv[3])
"""
    torch.save(tiny_tokens(), tmp_path / "tokens.pt")
    arguments = [tmp_path / "dense", tmp_path / "tokens.pt", tmp_path / "logits.pt"]
    alone = os.environ | {"SIEVE_START": "off"}
    subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)], check=True, cwd=tmp_path, capture_output=True, env=alone
    )
    expected = logits(tiny_pruned("llama"))
    torch.testing.assert_close(torch.load(tmp_path / "logits.pt"), expected, rtol=1e-3, atol=1e-3)


def test_what_the_architecture_has_no_place_for(tmp_path):
    model = tiny_pruned("llama")
    pair = next(iter(formats_of(model)))
    layer = model.get_submodule(pair)
    layer.B.bias = torch.nn.Parameter(torch.ones(layer.out_features))
    save(model, tiny_tokenizer(), tmp_path / "m")
    with pytest.raises(InputError, match=rf"m cannot be exported to dense: {pair} has a bias, for which Llama"):
        export(tmp_path / "m", tmp_path / "dense", "dense")
    assert not (tmp_path / "dense").exists()
    with pytest.raises(InputError, match="cannot be multiplied out"):
        multiply_out_(model)


def test_bad_input(folder, tmp_path):
    with pytest.raises(InputError, match="cannot export to 'spline': choose one of dense"):
        export(folder, tmp_path / "x", "spline")
    with pytest.raises(InputError, match="cannot export to 'base'"):
        export(folder, tmp_path / "x", "base")
    with pytest.raises(InputError, match="already exists"):
        export(folder, folder, "dense")
    with pytest.raises(InputError, match="no folder"):
        export(tmp_path / "nothing", tmp_path / "x", "dense")


def test_the_command(folder, tmp_path, monkeypatch, capsys):
    def run(*arguments) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["sieve", "export", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        out, err = capsys.readouterr()
        return stop.value.code or 0, out + err

    code, said = run(folder, tmp_path / "dense", "--to", "dense", "--quiet")
    assert (code, said.strip()) == (0, f"The exported model is in {tmp_path / 'dense'}.")
    assert formats_of(AutoModelForCausalLM.from_pretrained(tmp_path / "dense")) == {}
    for arguments, words in (
        ((folder, tmp_path / "x", "--to", "spline"), "choose one of dense"),
        ((folder, tmp_path / "dense", "--to", "dense"), "already exists"),
        ((tmp_path / "nothing", tmp_path / "x", "--to", "dense"), "there is no folder"),
        ((folder, tmp_path / "x", "--to", "dense", "--dtype", "int3"), "unknown dtype"),
        ((folder, tmp_path / "x"), "--to"),
    ):
        code, said = run(*arguments)
        assert code == 2
        assert words in said
    assert not (tmp_path / "x").exists()


@pytest.fixture
def toy(monkeypatch):
    monkeypatch.setattr(exporters, "__path__", [*exporters.__path__, TOY])


def test_one_more_exporter_is_one_more_file(toy, folder, tmp_path):
    assert {"dense", "names"} <= set(export_formats())
    export(folder, tmp_path / "names.txt", "names")
    names = (tmp_path / "names.txt").read_text().splitlines()
    assert names == [name for name, _ in tiny_pruned("llama").named_parameters()]


def test_an_export_that_fails_leaves_nothing(toy, folder, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    toy_exporter = import_module("sieve.checkpoint.exporters.names")
    monkeypatch.setattr(toy_exporter, "EXPORTER", replace(toy_exporter.EXPORTER, export=full))
    with pytest.raises(StorageError, match="No space left"):
        export(folder, tmp_path / "names.txt", "names")
    assert list(tmp_path.iterdir()) == []
