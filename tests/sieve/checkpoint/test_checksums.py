"""A flipped bit in a saved folder is noticed; what others write into it later is unverified, not refused."""

import json
import random
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from sieve.checkpoint.folder import load, save
from sieve.errors import StorageError
from sieve.utils import progress
from sieve.utils.checksums import CHECKSUMS, _digests
from tests.tiny_models import tiny_model, tiny_pruned, tiny_tokenizer, tiny_tokens


@pytest.fixture
def copy(folder, tmp_path):
    return Path(shutil.copytree(folder, tmp_path / "copy"))


@pytest.fixture
def told(capsys):
    """What `load` tells of a folder."""

    def call(folder) -> str:
        with progress.shown():
            load(folder)
        return capsys.readouterr().err

    return call


def flip(file: Path, place: int, bit: int) -> None:
    content = bytearray(file.read_bytes())
    content[place] ^= 1 << bit
    file.write_bytes(content)


def test_every_flipped_bit_in_weights(copy, told):
    assert "unverified" not in told(copy)
    file, chance = copy / "sieve.safetensors", random.Random(0)
    content = file.read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    metadata = content.index(b'"__metadata__"')
    places = [*range(8), *range(metadata, metadata + 140, 3)]
    places += [chance.randrange(header) for _ in range(20)] + [
        chance.randrange(header, len(content)) for _ in range(39)
    ]
    for place in places:
        file.write_bytes(content)
        flip(file, place, chance.randrange(8))
        with pytest.raises(StorageError, match=f"{file} is damaged") as caught:
            load(copy)
        assert "\n" not in str(caught.value)
    file.write_bytes(content)
    load(copy)


def test_through_transformers_alone(copy):
    AutoModelForCausalLM.from_pretrained(copy)
    flip(copy / "sieve.safetensors", -3, 2)
    with pytest.raises(StorageError, match=r"sieve\.safetensors is damaged"):
        AutoModelForCausalLM.from_pretrained(copy)


def test_shards(tmp_path, monkeypatch):
    model = tiny_pruned("llama")
    plain = model.save_pretrained
    monkeypatch.setattr(model, "save_pretrained", lambda folder: plain(folder, max_shard_size="10KB"))
    save(model, tiny_tokenizer(), tmp_path / "m")
    shards = sorted((tmp_path / "m").glob("*.safetensors"))
    assert len(shards) > 2
    load(tmp_path / "m")
    for shard in shards:
        content = shard.read_bytes()
        flip(shard, -1, 0)
        with pytest.raises(StorageError, match=f"{shard.name} is damaged"):
            load(tmp_path / "m")
        shard.write_bytes(content)


def test_a_dense_model(tmp_path):
    save(tiny_model("gpt2"), tiny_tokenizer(), tmp_path / "m")
    load(tmp_path / "m")
    flip(tmp_path / "m" / "model.safetensors", -1, 0)
    with pytest.raises(StorageError, match=r"model\.safetensors is damaged"):
        load(tmp_path / "m")


@pytest.mark.parametrize("through", ["from_pretrained", "load"])
def test_what_others_save_into_the_folder_is_unverified(copy, told, through):
    model = AutoModelForCausalLM.from_pretrained(copy) if through == "from_pretrained" else load(copy)[0]
    with torch.no_grad():
        model.lm_head.weight[5] += 1
    model.save_pretrained(copy)
    note = told(copy)
    assert "unverified" in note
    assert "sieve.safetensors" in note
    assert not (copy / "sieve.safetensors").exists()
    with torch.no_grad():
        assert torch.equal(load(copy)[0](tiny_tokens()).logits, model(tiny_tokens()).logits)


def test_an_edited_configuration_is_unverified(copy, told):
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 0.1}))
    note = told(copy)
    assert "unverified" in note
    assert "config.json" in note
    assert "sieve.safetensors" not in note


def test_damaged_checksums(copy):
    file, chance = copy / CHECKSUMS, random.Random(0)
    content = file.read_bytes()
    # A flipped bit in white space, or of a \u escape's case, says the same.
    for place in [i for i in (chance.randrange(len(content)) for _ in range(60)) if content[i : i + 1].isalnum()]:
        flip(file, place, 0)
        with pytest.raises(StorageError, match=CHECKSUMS) as caught:
            load(copy)
        assert "\n" not in str(caught.value)
        file.write_bytes(content)
    for text in ("{}", "[]", "null", "", "[" * 100_000, '{"sha256": []}'):
        file.write_text(text)
        with pytest.raises(StorageError, match=CHECKSUMS):
            load(copy)
    file.unlink()
    load(copy)


def test_nothing_stands_in_the_configuration(folder):
    assert "checksum" not in (folder / "config.json").read_text()
    assert not hasattr(load(folder)[0], "hf_quantizer") or load(folder)[0].hf_quantizer is None


def test_pieces_are_hashed_in_order(tmp_path, monkeypatch):
    """Any swap, cut or change of pieces shows; the empty file has a checksum, too."""
    monkeypatch.setattr("sieve.utils.checksums.PIECE", 4)
    texts = ["aaaabbbbc", "bbbbaaaac", "aaaabbbb", "aaaabbbbd", "", "a"]
    files = [tmp_path / str(number) for number in range(len(texts))]
    for file, text in zip(files, texts, strict=True):
        file.write_text(text)
    assert len(set(_digests(files))) == len(texts)
    assert _digests(files) == [_digests([file])[0] for file in files]
