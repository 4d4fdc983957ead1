"""Where Sieve is missing, transformers refuses a pruned model, or runs the folder's code: it makes no random one."""

import copy
import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import sieve
from sieve.checkpoint import brought_code
from sieve.checkpoint.brought_code import bring_code
from sieve.checkpoint.folder import load, save
from sieve.checkpoint.modeling_sieve import PrunedConfig
from sieve.checkpoint.multiply_out import multiply_out_
from sieve.nn.low_rank import LowRankLinear
from tests.tiny_models import tiny_model, tiny_pruned, tiny_tokenizer, tiny_tokens

ALONE = """
import sys
sys.meta_path[:] = [finder for finder in sys.meta_path if "sieve" not in type(finder).__module__]
import torch
from transformers import AutoModelForCausalLM
folder, tokens, output = sys.argv[1:]
try:
    AutoModelForCausalLM.from_pretrained(folder)
except OSError as error:
    print("refused", error)
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
torch.save(model(torch.load(tokens)).logits.detach(), output)
try:
    model.save_pretrained(output + ".saved")
except ValueError as error:
    print("not saved:", error)
assert not [name for name in sys.modules if name.startswith("sieve.")]
"""


@torch.no_grad()
def logits(model):
    return model(tiny_tokens()).logits


class Alone:
    """Transformers without Sieve, in a process of its own: what it says of a folder, and the logits if it trusts it."""

    def __init__(self, folder, place):
        torch.save(tiny_tokens(), place / "tokens.pt")
        self.output = place / "logits.pt"
        self.output.unlink(missing_ok=True)
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        environment["HF_MODULES_CACHE"] = str(place / "modules")
        command = [sys.executable, "-c", ALONE, str(folder), str(place / "tokens.pt"), str(self.output)]
        run = subprocess.run(command, capture_output=True, text=True, check=True, env=environment, cwd=folder)
        self.said = run.stdout

    def logits(self):
        return torch.load(self.output)


def sharded(model, monkeypatch):
    plain = model.save_pretrained
    monkeypatch.setattr(model, "save_pretrained", lambda folder: plain(folder, max_shard_size="10KB"))
    return model


def shared():
    return sieve.share_inputs_(tiny_model("llama"))


@pytest.mark.parametrize(
    "kind", ["pairs", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("shards", "stacks"))]
)
def test_a_folder_of_ours(kind, tmp_path, monkeypatch):
    model = shared() if kind == "stacks" else tiny_pruned("llama")
    save(sharded(model, monkeypatch) if kind == "shards" else model, tiny_tokenizer(), tmp_path / "m")
    names = {file.name for file in (tmp_path / "m").iterdir()}
    assert not [name for name in names if name.startswith("model.") or name.startswith("model-")]
    assert ("sieve.safetensors.index.json" in names) == (kind == "shards")
    assert torch.allclose(logits(load(tmp_path / "m")[0]), logits(model), atol=1e-5)
    assert torch.allclose(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "m")), logits(model), atol=1e-5)
    alone = Alone(tmp_path / "m", tmp_path)
    assert "refused Error no file named model.safetensors" in alone.said
    # The code in the folder does what Sieve does, where the user trusts it; it refuses to save.
    assert torch.allclose(alone.logits(), logits(model), atol=1e-5)
    assert "cannot be saved" in alone.said


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gpt2", "qwen2", "int8", "int4", "stacked pairs"])
def test_code_in_the_folder_holds_every_format(kind, tmp_path):
    if kind == "stacked pairs":
        model = shared()
        factors = sieve.project(model, sieve.calibrate(model, tiny_tokenizer(), "geography", tokens=800))
        model = sieve.apply_(model, factors, dict.fromkeys(list(factors)[:3], 4))
    elif kind in ("int8", "int4"):
        model = sieve.quantize_(tiny_pruned("qwen2"), kind)
    else:
        model = tiny_pruned(kind, pivoted=True)
    save(model, tiny_tokenizer(), tmp_path / "m")
    assert torch.allclose(Alone(tmp_path / "m", tmp_path).logits(), logits(model), atol=1e-5)


def test_code_in_the_folder_runs_only_if_it_is_trusted_and_leaves_loading_to_sieve(folder, tmp_path):
    place = tmp_path / "m"
    shutil.copytree(folder, place)
    model = AutoModelForCausalLM.from_pretrained(place, trust_remote_code=True)
    assert type(model.model.layers[0].self_attn.q_proj) is LowRankLinear
    assert not hasattr(model.config, "auto_map")
    # The folder's checksums cover the code.
    code = sys.modules[PrunedConfig.__module__]
    assert f"{Path(code.__file__).stem}.{code.PrunedModelForCausalLM.__name__}" == brought_code._NAMED
    assert "modeling_sieve.py" in json.loads((place / "checksums.json").read_text())["files"]
    with (place / "modeling_sieve.py").open("a") as file:
        file.write(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    for trust in (None, False):
        AutoModelForCausalLM.from_pretrained(place, trust_remote_code=trust)
    load(place)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("tensors", "torchao", "does not read torchao: load the model with Sieve"),
        ("version", 3, "does not read version 3: load the model with Sieve"),
        ("layers", {"a": {"format": "toy"}}, "a is stored as 'toy': load the model with Sieve"),
        ("weights", "../other.safetensors", "no file of weights in the folder"),
    ],
)
def test_what_the_code_in_the_folder_cannot_hold_it_refuses(key, value, message):
    config = {"version": 2, "layers": {}, "weights": "sieve.safetensors"}
    PrunedConfig(**config)
    with pytest.raises(ValueError, match=message):
        PrunedConfig(**config | {key: value})


def test_a_model_with_code_of_its_own_keeps_it(tmp_path):
    config = {"auto_map": {"AutoModelForCausalLM": "theirs.Model"}}
    bring_code(tmp_path, config)
    assert config == {"auto_map": {"AutoModelForCausalLM": "theirs.Model"}}
    assert not list(tmp_path.iterdir())


def test_what_the_model_saves_itself(folder, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(folder)
    for count, one in enumerate((model, copy.deepcopy(model), pickle.loads(pickle.dumps(model)))):
        place = tmp_path / str(count)
        one.save_pretrained(place)
        one.save_pretrained(place)  # again: transformers deletes its key on saving
        assert (place / "model.safetensors").is_file()  # where training tools look for it
        again = AutoModelForCausalLM.from_pretrained(place)
        assert torch.equal(logits(again), logits(model))
        assert not hasattr(again.config, "transformers_weights")
    alone = Alone(place, tmp_path)
    assert "import-sieve-first.safetensors" in alone.said
    assert alone.said.startswith("refused")
    assert torch.allclose(alone.logits(), logits(model), atol=1e-5)


@pytest.mark.slow
def test_a_model_that_was_pruned_here_and_one_that_is_dense_again(tmp_path):
    model = tiny_model("llama")
    factors = sieve.project(model, sieve.calibrate(model, tiny_tokenizer(), "geography", tokens=800))
    sieve.apply_(model, factors, dict.fromkeys(list(factors)[:2], 4))
    model.save_pretrained(tmp_path / "pruned", max_shard_size="20KB")
    assert "transformers_weights" in json.loads((tmp_path / "pruned" / "config.json").read_text())
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "pruned")), logits(model))
    dense = multiply_out_(model)
    dense.save_pretrained(tmp_path / "dense")
    assert "transformers_weights" not in json.loads((tmp_path / "dense" / "config.json").read_text())
    assert "auto_map" not in json.loads((tmp_path / "dense" / "config.json").read_text())
    assert Alone(tmp_path / "dense", tmp_path).said == ""


def test_a_failed_save_leaves_the_model_able_to_save(folder, tmp_path, monkeypatch):
    model = AutoModelForCausalLM.from_pretrained(folder)
    (tmp_path / "file").write_text("")
    with pytest.raises(AssertionError):
        model.config.save_pretrained(tmp_path / "file")
    monkeypatch.setattr(type(model.config), "save_pretrained", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model.save_pretrained(tmp_path / "x")
    monkeypatch.undo()
    model.save_pretrained(tmp_path / "y")
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "y")), logits(model))


def test_a_trainer_goes_on_from_its_checkpoint(folder, tmp_path):
    from transformers import Trainer, TrainingArguments

    arguments = TrainingArguments(
        output_dir=str(tmp_path), max_steps=2, save_steps=1, use_cpu=True, report_to=[], disable_tqdm=True
    )
    rows = [{"input_ids": row, "labels": row} for row in tiny_tokens()]
    Trainer(AutoModelForCausalLM.from_pretrained(folder), arguments, train_dataset=rows).train()
    trainer = Trainer(AutoModelForCausalLM.from_pretrained(folder), arguments, train_dataset=rows)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    assert trainer.state.global_step == 2
