"""Whatever decides a number shows in the identity of a calibration and of a journal; nothing else does."""

import json

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

import sieve
from sieve.calibration.statistics import Statistics
from sieve.errors import InputError
from sieve.utils.identity import differences, identity_of, tokenizer_fingerprint
from tests.tiny_models import TINY, tiny_model, tiny_tokenizer, tiny_tokens


def changed(model=None, tokenizer=None) -> list[str]:
    before = identity_of(tiny_model("llama"), tiny_tokenizer())
    return differences(before, identity_of(model or tiny_model("llama"), tokenizer or tiny_tokenizer()))


@pytest.mark.parametrize("name", TINY)
def test_it_is_what_json_gives_back_and_the_same_in_every_process(name):
    identity = identity_of(tiny_model(name), tiny_tokenizer())
    assert json.loads(json.dumps(identity)) == identity
    assert differences(identity, identity_of(tiny_model(name), tiny_tokenizer())) == []


def test_where_a_model_comes_from_does_not_matter(tmp_path):
    tiny_model("llama").save_pretrained(tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert changed(model) == changed(AutoModelForCausalLM.from_pretrained(tmp_path / "model"))
    assert "model" not in changed(model)
    assert "buffers" not in changed(model)
    (tmp_path / "model").rename(tmp_path / "moved")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "moved")
    assert differences(identity_of(model, tiny_tokenizer()), identity_of(again, tiny_tokenizer())) == []


def test_what_shows():
    model = tiny_model("llama")
    model.lm_head.weight.data[0, 0] += 1
    assert changed(model) == ["model"]
    model = tiny_model("llama")
    model.config.hidden_act = "relu"
    assert changed(model) == ["configuration (hidden_act)"]
    model = tiny_model("llama")
    model.model.layers[0].mlp.act_fn = torch.nn.ReLU()
    assert changed(model) == ["layers"]
    model = tiny_model("llama")
    model.model.rotary_emb.original_inv_freq *= 2
    model.model.rotary_emb.inv_freq *= 2
    assert changed(model) == ["buffers"]
    model = tiny_model("llama")
    model.generation_config.eos_token_id = 7
    assert changed(model) == ["configuration (generation)"]


def test_state_of_a_run_does_not_show():
    """A tokenizer remembers how it padded last, long rotary tables follow the last input's length."""
    tokenizer = tiny_tokenizer()
    tokenizer(["a", "abc"], padding=True, truncation=True, max_length=2)
    assert changed(tokenizer=tokenizer) == []
    config = TINY["llama"]()
    config.rope_parameters = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    config.max_position_embeddings = 8
    model = AutoModelForCausalLM.from_config(config).eval()
    before, frequencies = identity_of(model, tokenizer), model.model.rotary_emb.inv_freq.clone()
    with torch.no_grad():
        model(tiny_tokens(1, 24))
    assert not torch.equal(model.model.rotary_emb.inv_freq, frequencies)
    assert differences(before, identity_of(model, tokenizer)) == []


@pytest.mark.parametrize("change", ["added", "template", "special", "normaliser"])
def test_a_changed_tokenizer_shows(change):
    from tokenizers import normalizers

    tokenizer = tiny_tokenizer()
    if change == "added":
        tokenizer.add_tokens(["new"])
    elif change == "template":
        tokenizer.chat_template = "{{ messages }}"
    elif change == "special":
        tokenizer.pad_token = "</s>"
    else:
        tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    assert changed(tokenizer=tokenizer) == ["tokenizer"]


def test_tokenizers_without_a_backend():
    from transformers import CanineTokenizer

    assert tokenizer_fingerprint(CanineTokenizer()) == tokenizer_fingerprint(CanineTokenizer())
    assert tokenizer_fingerprint(CanineTokenizer()) != tokenizer_fingerprint(CanineTokenizer(pad_token="x"))


@pytest.fixture
def edited(world, tmp_path):
    """Folders of the world's model with another configuration."""

    def make(**values) -> str:
        folder = tmp_path / f"edited {'-'.join(values)}"
        model, tokenizer = sieve.load_model(world.model)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        config = AutoConfig.from_pretrained(folder).to_dict() | values
        (folder / "config.json").write_text(json.dumps(config))
        return str(folder)

    return make


CHANGES = [
    {"hidden_act": "relu"},
    {"rms_norm_eps": 0.1},
    {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}},
]


@pytest.mark.parametrize("change", CHANGES)
def test_calibrations_of_a_changed_configuration(world, tmp_path, edited, change):
    """The weights are the same: a calibration anew in a folder, a refusal of a file."""
    file, folder = tmp_path / "statistics.safetensors", tmp_path / "folder"
    for path in (file, folder):
        sieve.calibrate(*sieve.load_model(edited()), world.task, tokens=1000, path=path)
    other = sieve.load_model(edited(**change))
    with pytest.raises(InputError, match=rf"of another .*configuration \({next(iter(change))}"):
        sieve.calibrate(*other, world.task, tokens=1000, path=file)
    sieve.calibrate(*other, world.task, tokens=1000, path=folder)
    first, second = (Statistics.load(path) for path in folder.iterdir())
    key = "model.layers.1.mlp.gate_proj"
    assert not torch.equal(first.grams[key], second.grams[key])
    sieve.calibrate(*sieve.load_model(edited()), world.task, tokens=1000, path=file)  # of the same, read anew


def test_a_search_of_a_changed_configuration_is_refused(world, tmp_path, edited):
    journal, options = tmp_path / "journal.txt", {"tolerance": 0.9, "rank_multiple": 4, "search": "uniform"}

    def search(folder, **changes):
        model, tokenizer = sieve.load_model(folder)
        factors = sieve.project(model, sieve.calibrate(model, tokenizer, world.task, tokens=1000))
        return sieve.search(model, tokenizer, factors, world.task, journal=journal, **options, **changes)

    plan = search(edited())
    assert search(edited()) == plan
    with pytest.raises(InputError, match=r"changed since are layers, configuration \(hidden_act\)"):
        search(edited(hidden_act="relu"))
