"""Where Sieve is not imported, transformers refuses a pruned model: it makes no random one."""

import copy
import json
import os
import pickle
import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM

import sieve
from sieve.checkpoint.folder import load, save
from sieve.checkpoint.multiply_out import multiply_out_
from tests.tiny_models import tiny_model, tiny_pruned, tiny_tokenizer, tiny_tokens

ALONE = """
import sys
sys.meta_path[:] = [finder for finder in sys.meta_path if "sieve" not in type(finder).__module__]
from transformers import AutoModelForCausalLM
try:
    AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=len(sys.argv) > 2)
except OSError as error:
    print("refused", error)
assert not [name for name in sys.modules if name == "sieve.checkpoint.hf_quantizer"]
"""


@torch.no_grad()
def logits(model):
    return model(tiny_tokens()).logits


def alone(folder, *arguments) -> str:
    """What transformers says of the folder without Sieve."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-c", ALONE, str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, env=environment, cwd=folder).stdout


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
    assert not [name for name in names if name.startswith("model")]
    assert ("sieve.safetensors.index.json" in names) == (kind == "shards")
    assert torch.allclose(logits(load(tmp_path / "m")[0]), logits(model), atol=1e-5)
    assert torch.allclose(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "m")), logits(model), atol=1e-5)
    for arguments in ((), ("trust",)):
        assert "refused Error no file named model.safetensors" in alone(tmp_path / "m", *arguments)


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
    assert "import-sieve-first.safetensors" in (said := alone(place))
    assert said.startswith("refused")


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
    assert alone(tmp_path / "dense") == ""


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
