"""A module whose forward was replaced is still a module: it pickles, copies, and goes to other processes."""

import copy
import io
import subprocess
import sys

import pytest
import torch

import sieve
from sieve.nn.fuse import fuse_
from sieve.nn.patching import forwarding, replace_forward, replaced_by, restore_forward
from tests.golden.replay import HERE
from tests.tiny_models import tiny_model, tiny_pruned, tiny_tokens

FOLDERS = ("pairs", "pivoted", "masks", "shared")


def output(model):
    with torch.inference_mode():
        return model(tiny_tokens()).logits


def again(model):
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


def replaced(model):
    return {name for name, module in model.named_modules() if replaced_by(module) is not None}


@pytest.mark.parametrize("copied", [again, copy.deepcopy])
@pytest.mark.parametrize("model", [*FOLDERS, "fused", "gemma", "phi3"])
def test_copies_run_alike_and_alone(model, copied):
    if model in FOLDERS:
        # A file's weights lie at other places of a cache line than copies, on which some libraries' sums depend.
        model = copy.deepcopy(sieve.load(HERE / model)[0])
    else:
        model = fuse_(tiny_model("llama")) if model == "fused" else tiny_pruned(model)
    wanted = output(model)
    other = copied(model)
    assert replaced(other) == replaced(model) != set()
    assert torch.equal(output(other), wanted)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    assert torch.equal(output(model), wanted)
    assert not torch.equal(output(other), wanted)


def test_a_pruned_model_runs_in_a_process_that_loads_it(tmp_path):
    model = tiny_pruned("llama")
    torch.save(model, tmp_path / "model.pt")
    code = (
        "import sys, torch\nfrom tests.tiny_models import tiny_tokens\n"
        "model = torch.load(sys.argv[1], weights_only=False)\n"
        "with torch.inference_mode():\n    torch.save(model(tiny_tokens()).logits, sys.argv[2])\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "model.pt"), str(tmp_path / "y.pt")], check=True)
    torch.testing.assert_close(torch.load(tmp_path / "y.pt"), output(model))


def double(module, x):
    return 2 * x


def test_a_forward_is_replaced_and_restored():
    layer = torch.nn.Linear(3, 3)
    x = torch.ones(1, 3)
    plain = layer(x)
    replace_forward(layer, double)
    assert replaced_by(layer) is double
    with forwarding(layer, lambda x: 3 * x):
        assert torch.equal(layer(x), 3 * x)
        assert replaced_by(layer) is None
    assert torch.equal(layer(x), 2 * x)
    restore_forward(layer)
    assert replaced_by(layer) is None
    assert torch.equal(layer(x), plain)
