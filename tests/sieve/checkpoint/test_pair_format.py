"""A model saved in another format of pairs than it has: the same map, and the model keeps its own."""

import pytest
import torch
from safetensors.torch import load_file

from sieve.checkpoint.folder import load, save, write_quantization_config
from sieve.errors import InputError
from sieve.nn.low_rank import LowRankLinear, PivotedLinear
from tests.tiny_models import tiny_pruned, tiny_tokenizer, tiny_tokens

KINDS = {"pivoted": PivotedLinear, "plain": LowRankLinear}


@torch.no_grad()
def logits(model):
    return model(tiny_tokens()).logits


def pairs(model, kind):
    return {name: layer.rank for name, layer in model.named_modules() if isinstance(layer, kind)}


@pytest.mark.parametrize("name", ["llama", "qwen2", "gpt2", "phi3"])
@pytest.mark.parametrize("format", KINDS)
@pytest.mark.parametrize("pivoted", [False, True])
def test_saved_in_a_format(name, format, pivoted, tmp_path):
    model = tiny_pruned(name, pivoted=pivoted)
    write_quantization_config(model)
    before, expected, own = (
        model.config.quantization_config.to_dict(),
        logits(model),
        KINDS["pivoted" if pivoted else "plain"],
    )
    ranks = pairs(model, own)
    save(model, tiny_tokenizer(), tmp_path / "saved", format=format)
    assert pairs(model, own) == ranks
    assert model.config.quantization_config.to_dict() == before
    assert torch.equal(logits(model), expected)

    loaded, _ = load(tmp_path / "saved", device="cpu")
    assert pairs(loaded, KINDS[format]) == ranks
    torch.testing.assert_close(logits(loaded), expected, rtol=1e-3, atol=1e-4)
    saved = load_file(tmp_path / "saved" / "sieve.safetensors")
    assert any(key.endswith(".permutation") for key in saved) == (format == "pivoted")
    assert ("pivoted" in (tmp_path / "saved" / "README.md").read_text()) == (format == "pivoted")


def test_a_model_that_mixes_formats(tmp_path):
    """It is saved as it is; a format makes it one of a kind."""
    model = tiny_pruned("llama", pivoted=True)
    other = tiny_pruned("llama")
    name = next(iter(pairs(other, LowRankLinear)))
    model.set_submodule(name, other.get_submodule(name))
    save(model, tiny_tokenizer(), tmp_path / "saved")
    mixed, _ = load(tmp_path / "saved", device="cpu")
    assert torch.equal(logits(mixed), logits(model))
    assert all(pairs(mixed, kind) == pairs(model, kind) != {} for kind in KINDS.values())
    save(model, tiny_tokenizer(), tmp_path / "plain", format="plain")
    loaded, _ = load(tmp_path / "plain", device="cpu")
    torch.testing.assert_close(logits(loaded), logits(model), rtol=1e-3, atol=1e-4)


def test_unknown_formats(tmp_path):
    with pytest.raises(InputError, match="must be pivoted or plain, got 'dense'"):
        save(tiny_pruned("llama"), tiny_tokenizer(), tmp_path / "saved", format="dense")
    assert not (tmp_path / "saved").exists()
