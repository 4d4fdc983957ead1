"""Models that bring code of their own: it runs where the user allows it, and no run stops to ask."""

import json
import subprocess
import sys

import pytest
from safetensors.torch import load_file

import sieve
from sieve.errors import InputError
from tests.sieve.test_cli import options, own_cache, run  # noqa: F401 - fixtures

CONFIGURATION = """\
import os
from pathlib import Path

from transformers import LlamaConfig

Path(os.environ["HOUSE_RAN"]).touch()


class HouseConfig(LlamaConfig):
    model_type = "house"
"""
MODELLING = """\
from transformers import LlamaForCausalLM

from .configuration_house import HouseConfig
from .walls import scaled


class HouseForCausalLM(LlamaForCausalLM):
    config_class = HouseConfig

    def forward(self, *arguments, **options):
        output = super().forward(*arguments, **options)
        output.logits = scaled(output.logits)
        return output
"""
TOKENIZATION = """\
from transformers import PreTrainedTokenizerFast


class HouseTokenizer(PreTrainedTokenizerFast):
    pass
"""
# Compiled from its source, and so nothing that could be sent to another process as it is.
WALLS = "import torch\n\n\n@torch.jit.script\ndef scaled(logits):\n    return 0.5 * logits\n"


@pytest.fixture
def house(world, tmp_path, monkeypatch):
    """A folder with a model whose code leaves a file where it runs."""
    monkeypatch.setenv("HOUSE_RAN", str(tmp_path / "ran"))
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    # Another test of this process may have imported the package of such code from elsewhere, and left its path.
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    for name in [name for name in sys.modules if name.partition(".")[0] == "transformers_modules"]:
        monkeypatch.delitem(sys.modules, name)
    folder = tmp_path / "house"
    subprocess.run(["cp", "-r", world.model, folder], check=True)
    (folder / "configuration_house.py").write_text(CONFIGURATION)
    (folder / "modeling_house.py").write_text(MODELLING)
    (folder / "tokenization_house.py").write_text(TOKENIZATION)
    (folder / "walls.py").write_text(WALLS)
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "model_type": "house",
        "architectures": ["HouseForCausalLM"],
        "auto_map": {
            "AutoConfig": "configuration_house.HouseConfig",
            "AutoModelForCausalLM": "modeling_house.HouseForCausalLM",
        },
    }
    (folder / "config.json").write_text(json.dumps(config))
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config |= {
        "tokenizer_class": "HouseTokenizer",
        "auto_map": {"AutoTokenizer": [None, "tokenization_house.HouseTokenizer"]},
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def test_code_does_not_run_unless_allowed(run, world, house, tmp_path, monkeypatch):  # noqa: F811
    def asked(*prompt):
        raise AssertionError(f"a question: {prompt}")

    monkeypatch.setattr("builtins.input", asked)
    commands = (
        ("prune", house, *options(world, tmp_path / "out")[2:]),
        ("eval", house, "--task", world.task),
        ("eval", world.model, "--task", world.task, "--against", house),
        ("calibrate", house, "--task", world.task, "--output", tmp_path / "s.safetensors"),
    )
    for command in commands:
        code, out, err = run(*command, "--quiet")
        assert (code, out) == (2, "")
        assert err.count("\n") == 1
        assert "--trust-remote-code" in err
    for load in (sieve.load, sieve.load_model):
        with pytest.raises(InputError, match="trust_remote_code=True"):
            load(str(house))
    assert not (tmp_path / "ran").exists()


def test_pruned_saved_and_loaded(run, world, house, tmp_path):  # noqa: F811
    """The folder holds the code that its model needs, and asks for the same permission, whatever its recipe says."""
    output = tmp_path / "out"
    code, out, err = run("prune", house, *options(world, output)[2:], "--trust-remote-code", "--json")
    assert code == 0, err
    report = json.loads(out)
    code = {f"{name}.py" for name in ("configuration_house", "modeling_house", "tokenization_house", "walls")}
    assert code <= {file.name for file in output.iterdir()}
    assert "trust_remote_code=True" in (output / "README.md").read_text()
    subprocess.run(["rm", "-r", house], check=True)
    (tmp_path / "ran").unlink()
    with pytest.raises(InputError, match="trust_remote_code=True"):
        sieve.load(output)
    code, _, err = run("eval", output)
    assert (code, "--trust-remote-code" in err) == (2, True)
    assert not (tmp_path / "ran").exists()
    model, tokenizer = sieve.load(output, trust_remote_code=True)
    assert (type(model).__name__, type(tokenizer).__name__) == ("HouseForCausalLM", "HouseTokenizer")
    assert model.state_dict().keys() >= load_file(output / "sieve.safetensors").keys()
    fresh = subprocess.run(
        [sys.executable, "-m", "sieve", "eval", str(output), "--json", "--trust-remote-code"],
        capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert json.loads(fresh.stdout)["loglik"] == report["loglik"]["pruned"]["test"]


@pytest.mark.slow
def test_workers_run_the_code_that_a_model_brings(run, world, house, tmp_path):  # noqa: F811
    """Processes that cannot find it: each search of a fresh cluster has the same outcome as one without."""
    pytest.importorskip("ray")
    quick = ("--search", "ga", "--generations", 1, "--population", 4, "--offspring", 6, "--bottlenecks", 0)
    reports = []
    for workers in ((), ("--workers", 2)):
        output = tmp_path / f"out{len(workers)}"
        given = (*options(world, output)[2:], *quick, *workers, "--trust-remote-code", "--json")
        code, out, err = run("prune", house, *given)
        assert code == 0, err
        reports.append(json.loads(out))
    alone, shared = reports
    assert shared["loglik"] == alone["loglik"]
    assert shared["kept"] == alone["kept"]
