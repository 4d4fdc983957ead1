"""GGUF files are read back, by our own reader, as the model that was exported; what they cannot hold is named."""

import re

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

import sieve
from sieve.checkpoint.folder import save
from sieve.checkpoint.gguf_file import why_not_gguf
from sieve.errors import InputError
from sieve.models.loading import load_model
from tests.tiny_models import TINY, narrow_, tiny_model, tiny_pruned, tiny_tokenizer, tiny_tokens

TEXT = "Which animal has 12 legs? <think>none</think><|end|> naïve 你好"
FAMILIES = ("llama", "mistral", "qwen2", "qwen3")


def tokenizer(*splits):
    backend = Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([*splits, byte_level]) if splits else byte_level
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        ["Which animal has legs? animals have legs", "the legs of an animal"] * 3,
        trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, special_tokens=["<|start|>", "<|end|>"]),
    )
    made = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<|start|>", eos_token="<|end|>")
    made.add_tokens(["<think>"])
    made.chat_template = "{% for one in messages %}{{ one.content }}{% endfor %}"
    return made


@pytest.fixture(autouse=True)
def world(monkeypatch, tmp_path):
    """Tiny models with room for the tokenizer and blocks of 32, which the MLP's width of 72 is no multiple of."""
    monkeypatch.setenv("SIEVE_CACHE", str(tmp_path / "cache"))
    for name in (*FAMILIES, "gpt2", "phi3"):
        config = TINY[name]()
        config.vocab_size = 320
        if name == "qwen3":
            config.head_dim = 128
        monkeypatch.setitem(TINY, name, lambda config=config: config)


@torch.no_grad()
def logits(model):
    return model(tiny_tokens()).logits


def exported(model, folder, to="gguf", tokens=None):
    save(model, tokens or tokenizer(), folder / "model")
    sieve.export(folder / "model", folder / "out.gguf", to=to)
    return load_model(str(folder / "out.gguf"), dtype=model.dtype)


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_are_equal_when_read_back(family, tmp_path):
    model = tiny_pruned(family, pivoted=True)
    expected = logits(model)
    again, _ = exported(model, tmp_path)
    torch.testing.assert_close(logits(again), expected, atol=2e-4, rtol=1e-4)


def test_channels_that_were_pruned_become_zeros(tmp_path):
    model = tiny_pruned("llama")
    narrow_(model.model.layers[1].mlp, 24)
    expected = logits(model)
    again, _ = exported(model, tmp_path)
    assert again.model.layers[1].mlp.down_proj.in_features == model.config.intermediate_size
    torch.testing.assert_close(logits(again), expected, atol=2e-4, rtol=1e-4)


def test_the_tokenizer_is_read_back_with_its_special_tokens_and_template(tmp_path):
    ours = tokenizer()
    _, theirs = exported(tiny_pruned("llama"), tmp_path, tokens=ours)
    assert theirs(TEXT).input_ids == ours(TEXT).input_ids
    assert (theirs.bos_token, theirs.eos_token, theirs.pad_token) == ("<|start|>", "<|end|>", None)
    assert theirs.decode(ours(TEXT).input_ids, skip_special_tokens=True) == TEXT.replace("<|end|>", "")
    assert theirs.chat_template == ours.chat_template


@pytest.mark.parametrize(("to", "most"), [("gguf_q8_0", 0.02), ("gguf_q4_0", 0.2)])
def test_blocks(to, most, tmp_path):
    import gguf

    model = tiny_model("llama")
    W = model.model.layers[0].mlp.up_proj.weight.detach().clone()
    again, _ = exported(model, tmp_path, to)
    assert 0 < (again.model.layers[0].mlp.up_proj.weight - W).norm() / W.norm() < most
    kinds = {one.name: one.tensor_type.name for one in gguf.GGUFReader(tmp_path / "out.gguf").tensors}
    assert kinds["blk.0.ffn_up.weight"] == to.removeprefix("gguf_").upper()
    assert kinds["blk.0.ffn_down.weight"] == "F32"  # rows of 72
    assert kinds["token_embd.weight"] == "Q8_0"
    assert "output.weight" not in kinds  # tied


def test_bfloat16_stays_bfloat16(tmp_path):
    model = tiny_model("llama", dtype=torch.bfloat16)
    expected = logits(model)
    again, _ = exported(model, tmp_path)
    assert torch.equal(logits(again), expected)


class TestWhatItCannotHold:
    def lack(self, change=None, family="llama", tokens=None):
        model = tiny_pruned(family)
        if change:
            change(model)
        return why_not_gguf(model, tokens or tokenizer())

    def test_nothing(self):
        assert self.lack() is None

    @pytest.mark.parametrize(
        ("values", "says"),
        [
            ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, "rotary positions are scaled .*yarn"),
            ({"hidden_act": "gelu"}, "activation"),
            ({"sliding_window": 16}, "window of 16"),
            ({"intermediate_size": 40}, "MLPs have"),
        ],
    )
    def test_of_the_model(self, values, says):
        def change(model):
            for key, value in values.items():
                setattr(model.config, key, value)

        assert re.search(says, self.lack(change))

    def test_a_family_that_sieve_does_not_write(self):
        assert "this is a gpt2" in self.lack(family="gpt2")

    def test_tokenizers_of_other_kinds(self):
        assert "WordLevel" in self.lack(tokens=tiny_tokenizer())
        assert self.lack(tokens=tokenizer(pre_tokenizers.Digits(individual_digits=True))) is None
        assert "no name" in self.lack(tokens=tokenizer(pre_tokenizers.Punctuation()))

    def test_is_said_before_anything_is_written(self, tmp_path):
        save(tiny_pruned("llama"), tiny_tokenizer(), tmp_path / "model")
        with pytest.raises(InputError, match=r"cannot be exported to gguf: .*WordLevel"):
            sieve.export(tmp_path / "model", tmp_path / "out.gguf", to="gguf")
        assert not (tmp_path / "out.gguf").exists()
