"""GGUF files become cached safetensors folders: the same model, made once, mended when damaged."""

import json
import os
import subprocess
import sys

import gguf
import numpy as np
import pytest
import torch
from gguf.quants import dequantize, quantize

import sieve.models.gguf
from sieve.errors import InputError, StorageError
from sieve.models.gguf import safetensors_folder
from sieve.models.loading import load_model
from tests.tiny_models import tiny_model, tiny_tokens

Q8 = gguf.GGMLQuantizationType.Q8_0
NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SIEVE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "models"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A tiny Llama as a GGUF file, up_proj in Q8_0 blocks and the rest in float32; and the model it stands for."""
    model = tiny_model("llama")
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    config, writer = model.config, gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(["<pad>", "<s>", "</s>", "ab", *(chr(code) for code in range(33, 157))])
    writer.add_token_types([gguf.TokenType.CONTROL] * 3 + [gguf.TokenType.NORMAL] * 125)
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)

    writer.add_tensor("token_embd.weight", array(model.model.embed_tokens))
    writer.add_tensor("output_norm.weight", array(model.model.norm))
    for i, block in enumerate(model.model.layers):
        for ours, theirs in NAMES.items():
            layer, name = block.get_submodule(ours), f"blk.{i}.{theirs}.weight"
            if theirs == "ffn_up":
                blocks = quantize(array(layer), Q8)
                writer.add_tensor(name, blocks, raw_dtype=Q8)
                layer.weight.data = torch.from_numpy(dequantize(blocks, Q8))
            elif theirs in ("attn_q", "attn_k"):  # GGUF has the two halves of each head's rotary pairs interleaved
                halves = array(layer).reshape(-1, 2, config.head_dim // 2, config.hidden_size)
                writer.add_tensor(name, halves.swapaxes(1, 2).reshape(layer.weight.shape))
            else:
                writer.add_tensor(name, array(layer))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path, model


def array(layer):
    return np.ascontiguousarray(layer.weight.detach().numpy())


def logits(model):
    with torch.no_grad():
        return model(tiny_tokens()).logits


@pytest.fixture
def no_conversion(monkeypatch):
    def convert(*args):
        raise AssertionError("converted although a good copy is in the cache")

    return lambda: monkeypatch.setattr(sieve.models.gguf, "_convert", convert)


def test_same_model(tiny, cache):
    path, expected = tiny
    model, tokenizer = load_model(str(path), dtype="float32")
    assert torch.equal(logits(model), logits(expected))
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert not hasattr(model.config, "quantization_config")
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("</s>", None)
    assert model.config.eos_token_id == 2


def test_auto_is_bfloat16(tiny):
    path, expected = tiny
    model, _ = load_model(str(path))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    up = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(model.get_parameter(up), expected.get_parameter(up).bfloat16())


def test_made_once(tiny, cache, no_conversion):
    first = safetensors_folder(tiny[0])
    no_conversion()
    assert safetensors_folder(tiny[0]) == first
    assert list(cache.iterdir()) == [first]


def test_manifest_has_the_checksums(tiny):
    manifest = json.loads((safetensors_folder(tiny[0]) / "manifest.json").read_text())
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= manifest["files"].keys()
    assert manifest["source"]["bytes"] == tiny[0].stat().st_size
    assert all(len(digest) == 64 for digest in [*manifest["files"].values(), manifest["source"]["sha256"]])


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "tokenizer.json", "manifest.json"])
@pytest.mark.parametrize("damage", ["flip a bit", "cut off", "remove"])
def test_damaged_copy_is_made_again(tiny, file, damage, no_conversion):
    folder = safetensors_folder(tiny[0])
    good = {path.name: path.read_bytes() for path in folder.iterdir()}
    content = bytearray(good[file])
    if damage == "remove":
        (folder / file).unlink()
    else:
        content[len(content) // 2] ^= 1
        (folder / file).write_bytes(content if damage == "flip a bit" else content[:-1])
    assert safetensors_folder(tiny[0]) == folder
    no_conversion()
    safetensors_folder(tiny[0])
    assert (folder / "model.safetensors").read_bytes() == good["model.safetensors"]


def test_changed_file_gets_its_own_copy(tiny, tmp_path):
    other = tmp_path / "tiny.gguf"
    content = bytearray(tiny[0].read_bytes())
    content[-4:] = np.float32(3).tobytes()
    other.write_bytes(content)
    first, second = safetensors_folder(tiny[0]), safetensors_folder(other)
    assert first != second
    assert first.exists()


def test_the_quicker_of_two_processes_wins(tiny, cache, monkeypatch):
    convert = sieve.models.gguf._convert

    def overtaken(*args):
        monkeypatch.setattr(sieve.models.gguf, "_convert", convert)
        safetensors_folder(tiny[0])  # another process finishes first
        convert(*args)

    monkeypatch.setattr(sieve.models.gguf, "_convert", overtaken)
    folder = safetensors_folder(tiny[0])
    assert list(cache.iterdir()) == [folder]
    assert torch.equal(logits(load_model(str(tiny[0]), "float32")[0]), logits(tiny[1]))


@pytest.mark.parametrize("content", [b"", b"no GGUF at all", b"GGUF" + bytes(100)])
def test_not_a_gguf_file(tmp_path, cache, content):
    path = tmp_path / "broken.gguf"
    path.write_bytes(content)
    with pytest.raises(InputError, match="cannot read") as caught:
        load_model(str(path))
    assert "\n" not in str(caught.value)
    assert not cache.exists() or list(cache.iterdir()) == []


def test_cut_off_gguf_file(tiny, tmp_path, cache):
    path = tmp_path / "cut.gguf"
    path.write_bytes(tiny[0].read_bytes()[:-5000])
    with pytest.raises(InputError, match="cannot read"):
        load_model(str(path))
    assert list(cache.iterdir()) == []


def test_full_disk(tiny, cache, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="No space left"):
        safetensors_folder(tiny[0])
    assert list(cache.iterdir()) == []


def test_mending_leaves_other_files(tiny, no_conversion):
    folder = safetensors_folder(tiny[0])
    (folder / "notes.txt").write_text("mine")
    (folder / "config.json").write_text("{}")
    assert safetensors_folder(tiny[0]) == folder
    assert (folder / "notes.txt").read_text() == "mine"
    no_conversion()
    assert safetensors_folder(tiny[0]) == folder  # a file of another's is no damage


def test_the_copy_is_private(tiny, cache):
    folder = safetensors_folder(tiny[0])
    assert {path.stat().st_mode & 0o777 for path in (cache.parent, cache, folder)} == {0o700}
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}


@pytest.mark.parametrize("place", ["model.safetensors", "."])
def test_a_copy_that_others_may_have_written_is_not_used(tiny, place):
    folder = safetensors_folder(tiny[0])
    (folder / place).chmod(0o777)
    other = safetensors_folder(tiny[0])
    assert other != folder
    assert torch.equal(logits(load_model(str(tiny[0]), "float32")[0]), logits(tiny[1]))
    assert safetensors_folder(tiny[0]) == other  # made once in this process


@pytest.mark.parametrize("place", ["/proc/nope", "{}/file"])
def test_a_cache_that_cannot_be_written(tiny, tmp_path, monkeypatch, place):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SIEVE_CACHE", place.format(tmp_path))
    folder = safetensors_folder(tiny[0])
    assert (folder.parent.stat().st_mode & 0o777) == 0o700
    assert torch.equal(logits(load_model(str(tiny[0]), "float32")[0]), logits(tiny[1]))


def test_a_full_cache(tiny, cache, monkeypatch):
    plain = os.fsync

    def full(descriptor):
        if os.readlink(f"/proc/self/fd/{descriptor}").startswith(str(cache)):
            raise OSError(28, "No space left on device")
        plain(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    assert not safetensors_folder(tiny[0]).is_relative_to(cache)
    assert list(cache.iterdir()) == []


def test_a_process_takes_its_folder_along(tiny, tmp_path):
    """Where there is no cache the copy goes when the process ends, and with the next process if it is killed."""
    script = "import sys, os; from pathlib import Path; from sieve.models.gguf import safetensors_folder as f\n"
    script += "print(f(Path(sys.argv[1]))); os.kill(os.getpid(), int(sys.argv[2])) if sys.argv[2] != '0' else None"
    environment = os.environ | {"SIEVE_CACHE": "/proc/nope", "TMPDIR": str(tmp_path)}
    for sign, left in (("9", 1), ("0", 0)):
        command = [sys.executable, "-c", script, str(tiny[0]), sign]
        folder = subprocess.run(command, env=environment, capture_output=True, text=True).stdout.strip()
        assert folder.startswith(str(tmp_path))
        assert len(list(tmp_path.glob(".sieve.*"))) == left
