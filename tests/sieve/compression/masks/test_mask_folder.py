"""Masked models as folders: what config.json says, what loads, and what training or adapters do to masks."""

import json
import subprocess
import sys

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM

from sieve.checkpoint.folder import load, save
from sieve.checkpoint.size import model_bytes, model_parameters, weight_bytes
from sieve.compression.apply import apply_
from sieve.compression.low_rank.factors import Factors
from sieve.compression.low_rank.pair import FactorPair
from sieve.compression.masks.config import MaskOptions
from sieve.compression.masks.mask import mask
from sieve.compression.masks.masks import Mask
from sieve.compression.masks.nesting import nested_thresholds
from sieve.compression.plan import Plan
from sieve.errors import InputError
from sieve.models.linears import prunable, weight_of
from sieve.nn.formats.masked import Masked, masked_layers
from sieve.nn.formats.pair import Pair
from sieve.nn.semi_structured import runs_sparse, sparse_
from tests.sieve.compression.masks.test_mask import logits, masks_of
from tests.tiny_models import tiny_model, tiny_tokenizer

NAME = "model.layers.0.mlp.down_proj"


def masked_model(name="llama", pattern="unstructured", kept=0.5):
    model = tiny_model(name)
    masks = mask(model, None, "magnitude", options=MaskOptions(pattern=pattern))
    plan = Plan.uniform(list(masks.matrices(model).values())[1:], kept, 4)
    return apply_(model, masks, plan), plan


@pytest.mark.parametrize("pattern", ["unstructured", "2:4"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "phi3", "opt"])
def test_round_trip(name, pattern, tmp_path):
    model, plan = masked_model(name, pattern)
    expected, folder = logits(model), tmp_path / "first"
    save(model, tiny_tokenizer(), folder)
    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    named = {} if pattern == "unstructured" else {"pattern": pattern}
    assert config["layers"] == {
        key: {"format": "mask", "kept": rank / prunable(model)[key].n, **named} for key, rank in plan.items()
    }
    assert config["quant_method"] == "sieve"
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    assert torch.equal(logits(loaded), expected)
    for key, rank in plan.items():
        weight = weight_of(loaded.get_submodule(key))
        assert int((weight != 0).sum()) == rank * weight.shape[0]
    loaded.save_pretrained(tmp_path / "second")
    again = json.loads((tmp_path / "second" / "config.json").read_text())["quantization_config"]
    assert again == config
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "second")), expected)
    assert torch.equal(logits(load(folder)[0]), expected)
    assert AutoModel.from_pretrained(folder).config.quantization_config.to_dict() == config


def test_sizes_count_zeros_as_removed_and_bytes_as_they_are(tmp_path):
    dense = tiny_model("llama")
    model, plan = masked_model()
    matrices = prunable(dense)
    zeros = sum(matrices[name].m * (matrices[name].n - rank) for name, rank in plan.items())
    # A tied row of zeros for the padding token is a parameter like any other.
    assert model_parameters(dense) - model_parameters(model) == zeros > 0
    assert model_bytes(model) == model_bytes(dense)
    save(model, tiny_tokenizer(), tmp_path / "masked")
    save(dense, tiny_tokenizer(), tmp_path / "dense")
    assert weight_bytes(tmp_path / "masked") == pytest.approx(weight_bytes(tmp_path / "dense"), rel=0.001)
    card = (tmp_path / "masked" / "README.md").read_text()
    assert f"{len(plan)} of its weight matrices are masked" in card
    assert "finds no weights" not in card


def test_a_new_process_loads_it_with_transformers_alone(tmp_path):
    """Zeros are ordinary weights: without `import sieve`, too, the model is the same."""
    model, _ = masked_model()
    save(model, tiny_tokenizer(), tmp_path / "m")
    script = (
        "import sys, torch\n"
        "from transformers import AutoModelForCausalLM\n"
        "model = AutoModelForCausalLM.from_pretrained(sys.argv[1])\n"
        "torch.save(model(input_ids=torch.tensor([[5, 6, 7]])).logits.detach(), sys.argv[2])\n"
    )
    subprocess.run([sys.executable, "-c", script, tmp_path / "m", tmp_path / "logits.pt"], check=True, cwd=tmp_path)
    with torch.no_grad():
        expected = model(input_ids=torch.tensor([[5, 6, 7]])).logits
    assert torch.allclose(torch.load(tmp_path / "logits.pt"), expected, atol=1e-4)


def test_filled_zeros_are_noticed_before_anything_is_written(tmp_path):
    model, plan = masked_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    tokens = torch.arange(10, 22)[None]
    model(input_ids=tokens, labels=tokens).loss.backward()
    optimizer.step()
    with pytest.raises(InputError, match="filled the zeros"):
        save(model, tiny_tokenizer(), tmp_path / "m")
    assert not (tmp_path / "m").exists()
    del model.config.quantization_config
    save(model, tiny_tokenizer(), tmp_path / "m")
    assert "quantization_config" not in json.loads((tmp_path / "m" / "config.json").read_text())
    assert model_parameters(model) == sum(p.numel() for p in model.parameters())
    assert plan


def test_lora_leaves_the_masked_weights_alone_until_it_is_merged(tmp_path):
    peft = pytest.importorskip("peft")
    model, _ = masked_model()
    before = logits(model)
    zeros = (model.get_submodule(NAME).weight == 0).sum()
    config = peft.LoraConfig(r=2, target_modules=["down_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    adapted = peft.get_peft_model(model, config)
    assert not torch.allclose(logits(adapted), before, atol=1e-4)
    assert (adapted.base_model.model.get_submodule(NAME).base_layer.weight == 0).sum() == zeros
    merged = adapted.merge_and_unload()
    with pytest.raises(InputError, match="merged adapter"):
        save(merged, tiny_tokenizer(), tmp_path / "m")


def test_masks_can_be_followed_by_others_and_by_pairs(tmp_path):
    """A masked model is a dense one that can be pruned again; marks say what is true of it."""
    model, plan = masked_model(kept=0.75)
    masks = mask(model, None, "magnitude")
    apply_(model, masks, {NAME: 8})
    kept = masked_layers(model)
    assert kept[NAME] == Masked(8 / 72)
    assert len(kept) == len(plan)
    W = model.get_submodule(NAME).weight.detach()
    U, S, V = torch.linalg.svd(W, full_matrices=False)
    factors = Factors({NAME: FactorPair(S[:16, None] * V[:16], U[:, :16], S.double() ** 2)}, "svd")
    apply_(model, factors, {NAME: 4})
    assert model.config.quantization_config.layers[NAME] == Pair(4)
    assert len(masked_layers(model)) == len(plan) - 1
    expected = logits(model)
    save(model, tiny_tokenizer(), tmp_path / "both")
    assert torch.equal(logits(load(tmp_path / "both")[0]), expected)


def test_damaged_marks_are_refused(tmp_path):
    model, _ = masked_model()
    save(model, tiny_tokenizer(), tmp_path / "m")
    file = tmp_path / "m" / "config.json"
    config = json.loads(file.read_text())
    for kept in (0, 1.5, "half"):
        config["quantization_config"]["layers"][NAME]["kept"] = kept
        file.write_text(json.dumps(config))
        with pytest.raises(InputError, match="damaged"):
            load(tmp_path / "m")


def test_patterns_can_differ_from_layer_to_layer(tmp_path):
    model, plan = masked_model(pattern="2:4")
    apply_(model, mask(model, None, "magnitude"), {NAME: 8})
    save(model, tiny_tokenizer(), tmp_path / "m")
    patterns = {name: one.pattern for name, one in masked_layers(load(tmp_path / "m")[0]).items()}
    assert patterns == dict.fromkeys(plan, "2:4") | {NAME: "unstructured"}


def test_nothing_runs_sparse_on_a_cpu(monkeypatch):
    model, _ = masked_model(pattern="2:4")
    before = logits(model)
    assert sparse_(model) == 0
    assert torch.equal(logits(model), before)
    assert not runs_sparse(torch.device("cpu"), torch.bfloat16)
    cuda = torch.device("cuda")
    for capability, dtype, expected in (
        ((9, 0), torch.bfloat16, True),
        ((8, 0), torch.float16, True),
        ((7, 5), torch.float16, False),
        ((9, 0), torch.float32, False),
    ):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, value=capability: value)
        assert runs_sparse(cuda, dtype) == expected


def test_2_to_4_masks_are_what_torchs_compressed_format_holds():
    """Compressed by torch's own conversion (its kernels need a GPU, the conversion does not) and back: the same."""
    from torch.sparse._semi_structured_conversions import (
        sparse_semi_structured_from_dense_cutlass,
        sparse_semi_structured_to_dense_cutlass,
    )

    W = torch.randn(64, 128).bfloat16()
    left = Mask(W, nested_thresholds(W.float().abs(), "2:4")).at(64)
    values, indices = sparse_semi_structured_from_dense_cutlass(left)
    assert values.shape == (64, 64)
    assert torch.equal(sparse_semi_structured_to_dense_cutlass(values, indices), left)


def test_sparse_weights_are_put_in_place_where_a_device_has_them(monkeypatch):
    """With a device that would take them, every 2:4 matrix that fits is compressed, and no other."""
    from sieve.nn import semi_structured

    model, plan = masked_model(pattern="2:4")
    seen = []
    monkeypatch.setattr(semi_structured, "runs_sparse", lambda device, dtype: True)
    monkeypatch.setattr(semi_structured, "_COLUMNS", 32)
    monkeypatch.setattr(semi_structured, "to_sparse_semi_structured", lambda weight: seen.append(weight) or weight)
    before = logits(model)
    fitting = [name for name in plan if all(side % 32 == 0 for side in model.get_submodule(name).weight.shape)]
    assert sparse_(model) == len(fitting) == len(seen) > 0
    assert torch.equal(logits(model), before)
    assert not model.get_submodule(fitting[0]).weight.requires_grad
    unstructured, _ = masked_model()
    assert sparse_(unstructured) == 0

    def refuse(weight):
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(semi_structured, "to_sparse_semi_structured", refuse)
    with pytest.warns(UserWarning, match="run dense: no such kernel"):
        assert sparse_(masked_model(pattern="2:4")[0]) == 0


def test_masks_of_statistics_reach_the_folder(tmp_path):
    model = tiny_model("llama")
    masks = masks_of(model, "sparsegpt", task_aware=True)
    apply_(model, masks, dict.fromkeys(masks, 16))
    expected = logits(model)
    save(model, tiny_tokenizer(), tmp_path / "m")
    assert torch.equal(logits(load(tmp_path / "m")[0]), expected)
