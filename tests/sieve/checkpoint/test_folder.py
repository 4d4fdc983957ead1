"""save → load gives the same model: for every architecture, in a new process, through transformers alone."""

import json
import os
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

from sieve.checkpoint.folder import load, save, write_quantization_config
from sieve.checkpoint.size import model_bytes, weight_bytes
from sieve.errors import InputError, StorageError
from sieve.nn.low_rank import LowRankLinear, PivotedLinear
from tests.tiny_models import TINY, tiny_model, tiny_pruned, tiny_tokenizer, tiny_tokens

REPOSITORY = Path(__file__).parents[3]
MLP = "model.layers.0.mlp"
UP = f"{MLP}.up_proj"


def logits(model):
    with torch.no_grad():
        return model(tiny_tokens()).logits


@pytest.fixture
def copy(folder, tmp_path):
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def edit_config(folder, **values):
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"].update(values)
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("pivoted", [False, True])
@pytest.mark.parametrize("name", TINY)
def test_round_trip(name, pivoted, tmp_path):
    model = tiny_pruned(name, pivoted=pivoted)
    expected = logits(model)
    save(model, tiny_tokenizer(), tmp_path / "first")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "first")

    assert torch.equal(logits(loaded), expected)
    kind = PivotedLinear if pivoted else LowRankLinear
    pairs = {key: layer.rank for key, layer in loaded.named_modules() if isinstance(layer, kind)}
    assert pairs == {key: layer.rank for key, layer in model.named_modules() if isinstance(layer, kind)}
    assert len(pairs) > 0
    assert loaded.generate(tiny_tokens(1, 4), max_new_tokens=3, min_new_tokens=3).shape == (1, 7)
    tied = model.config.tie_word_embeddings
    assert (loaded.get_output_embeddings().weight is loaded.get_input_embeddings().weight) == tied

    loaded.save_pretrained(tmp_path / "second")
    configs = [json.loads((tmp_path / folder / "config.json").read_text()) for folder in ("first", "second")]
    assert configs[0]["quantization_config"].pop("weights") == "sieve.safetensors"
    assert configs[1].pop("transformers_weights") == "import-sieve-first.safetensors"
    assert configs[0] == configs[1]
    generation = [(tmp_path / folder / "generation_config.json").read_text() for folder in ("first", "second")]
    assert generation[0] == generation[1]
    first = load_file(tmp_path / "first" / "sieve.safetensors")
    second = load_file(tmp_path / "second" / "model.safetensors")
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_config_holds_the_documented_format(folder):
    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    layers = {
        key: {"format": "pair", "rank": layer.rank}
        for key, layer in tiny_pruned("llama").named_modules()
        if isinstance(layer, LowRankLinear)
    }
    assert config == {"quant_method": "sieve", "version": 2, "layers": layers, "weights": "sieve.safetensors"}
    names = load_file(folder / "sieve.safetensors").keys()
    assert {"model.layers.0.self_attn.q_proj.A.weight", "model.layers.0.self_attn.q_proj.B.weight"} <= names


def test_config_says_where_pairs_are_pivoted(tmp_path):
    save(tiny_pruned("llama", pivoted=True), tiny_tokenizer(), tmp_path / "m")
    config = json.loads((tmp_path / "m" / "config.json").read_text())["quantization_config"]
    assert {layer["format"] for layer in config["layers"].values()} == {"pivoted_pair"}
    prefix = "model.layers.0.self_attn.q_proj"
    weights = load_file(tmp_path / "m" / "sieve.safetensors")
    assert {f"{prefix}.A.weight", f"{prefix}.C.weight", f"{prefix}.permutation"} <= weights.keys()
    assert model_bytes(tiny_pruned("llama", pivoted=True)) == sum(tensor.nbytes for tensor in weights.values())
    assert "stored pivoted" in (tmp_path / "m" / "README.md").read_text()
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "m", dtype=torch.bfloat16)
    assert loaded.get_submodule(prefix).permutation.dtype == torch.int64
    assert torch.equal(logits(loaded), logits(tiny_pruned("llama", dtype=torch.bfloat16, pivoted=True)))


def test_a_new_process_needs_only_import_sieve(folder, tmp_path):
    script = """
import sys, torch
import sieve
assert "transformers" not in sys.modules
torch.set_grad_enabled(False)
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
torch.save(model(torch.load(sys.argv[2])).logits, sys.argv[3])
"""
    torch.save(tiny_tokens(), tmp_path / "tokens.pt")
    arguments = [str(folder), str(tmp_path / "tokens.pt"), str(tmp_path / "logits.pt")]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    subprocess.run([sys.executable, "-c", script, *arguments], check=True, env=environment, capture_output=True)
    assert torch.equal(torch.load(tmp_path / "logits.pt"), logits(tiny_pruned("llama")))


def test_load_returns_model_and_tokenizer(folder):
    model, tokenizer = load(folder)
    assert not model.training
    assert torch.equal(logits(model), logits(tiny_pruned("llama")))
    assert tokenizer("In which country?").input_ids == tiny_tokenizer()("In which country?").input_ids


@pytest.mark.parametrize("options", [{"dtype": torch.bfloat16}, {"device_map": "cpu"}, {"device_map": "auto"}])
def test_options_of_from_pretrained(folder, options):
    model = AutoModelForCausalLM.from_pretrained(folder, **options)
    expected = tiny_pruned("llama", dtype=options.get("dtype", torch.float32))
    assert torch.equal(logits(model), logits(expected))


def test_the_bare_decoder_loads(folder):
    model = AutoModel.from_pretrained(folder)
    with torch.no_grad():
        assert torch.equal(model(tiny_tokens())[0], tiny_pruned("llama").model(tiny_tokens())[0])


@pytest.mark.parametrize("cast", [lambda m: m.half(), lambda m: m.float(), lambda m: m.to(torch.bfloat16)])
def test_a_loaded_model_can_be_cast(folder, cast):
    model = cast(AutoModelForCausalLM.from_pretrained(folder))
    assert model.model.layers[0].self_attn.q_proj.A.weight.dtype == model.dtype


def test_a_model_without_pairs_is_saved_as_plain(tmp_path):
    model = tiny_model("llama")
    save(model, tiny_tokenizer(), tmp_path / "dense")
    assert "quantization_config" not in json.loads((tmp_path / "dense" / "config.json").read_text())
    assert "without it transformers" not in (tmp_path / "dense" / "README.md").read_text()
    assert torch.equal(logits(load(tmp_path / "dense")[0]), logits(model))


def test_mark_follows_the_model():
    model = tiny_pruned("llama")
    layers = write_quantization_config(model)
    assert model.config.quantization_config.layers == layers
    model.model = tiny_model("llama").model
    assert write_quantization_config(model) == {}
    assert not hasattr(model.config, "quantization_config")


def test_report_recipe_and_card_lie_beside(tmp_path):
    report = {"model": "tiny", "task": "letters", "parameters": {"prunable_removed": 0.25}}
    save(tiny_pruned("llama"), tiny_tokenizer(), tmp_path / "m", report=report, recipe={"model": "tiny", "seed": 3})
    assert json.loads((tmp_path / "m" / "report.json").read_text()) == report
    assert (tmp_path / "m" / "recipe.yaml").read_text() == "model: tiny\nseed: 3\n"
    card = (tmp_path / "m" / "README.md").read_text()
    first = card.split("\n---\n\n")[1].splitlines()[0]
    assert "import sieve" in first
    assert "finds no weights" in first
    assert "25.0%" in card
    assert AutoTokenizer.from_pretrained(tmp_path / "m").pad_token == "<pad>"


def test_byte_counts(folder):
    model = tiny_pruned("llama")
    stored = sum(tensor.nbytes for tensor in load_file(folder / "sieve.safetensors").values())
    assert model_bytes(model) == stored  # tied embeddings once
    assert weight_bytes(folder) == (folder / "sieve.safetensors").stat().st_size > stored


class TestBadInput:
    @pytest.mark.parametrize(
        ("values", "message"),
        [
            ({"layers": {f"{MLP}.no_such_proj": {"format": "pair", "rank": 4}}}, "no_such_proj.* no linear layer of L"),
            ({"layers": {MLP: {"format": "pair", "rank": 4}}}, "no linear layer"),
            ({"layers": {"model.norm": {"format": "pair", "rank": 4}}}, "no linear layer"),
            ({"layers": {"model.embed_tokens": {"format": "mask", "kept": 0.5}}}, "no linear layer"),
            ({"layers": {UP: {"format": "pair", "rank": 0}}}, "up_proj': its rank must be a whole number from 1 up"),
            ({"layers": {UP: {"format": "pair", "rank": "4"}}}, "up_proj': its rank must be a whole number from 1 up"),
            ({"layers": {UP: {"format": "pair"}}}, "up_proj': it lacks rank"),
            ({"layers": {UP: {"format": "pair", "rank": 4, "bias": 1}}}, "its bias must be true or false"),
            ({"layers": {UP: {"format": "pair", "rank": 4, "turned": 1}}}, "knows nothing of its 'turned'"),
            (
                {"layers": {UP: {"format": "pivoted_pair", "rank": 73}}},
                "up_proj': a pair of rank 73 with 72 outputs",
            ),
            ({"layers": {UP: {"format": "narrow", "inputs": 32, "outputs": 0}}}, "its outputs must be a whole number"),
            ({"layers": {UP: {"format": "narrow", "inputs": 33, "outputs": 4}}}, "no part of one of"),
            (
                {"layers": {UP: {"format": "spline"}}},
                "its format is 'spline'; this Sieve reads dense, mask, narrow, pair",
            ),
            ({"layers": {UP: {"rank": 4}}}, "its format is None"),
            ({"layers": {UP: 4}}, "up_proj': it must be a format and its fields, got 4"),
            ({"layers": None}, "layers must map names"),
            ({"weights": "../sieve.safetensors"}, "weights must be a file in the folder"),
            ({"weights": "sieve.bin"}, "weights must be a file in the folder"),
            ({"version": 3}, "format 3 and this Sieve reads formats up to 2"),
            ({"version": "2"}, "format '2' and this Sieve"),
        ],
    )
    def test_damaged_config(self, copy, values, message):
        edit_config(copy, **values)
        with pytest.raises(InputError, match=message):
            load(copy)
        with pytest.raises(InputError, match=message):
            AutoModelForCausalLM.from_pretrained(copy)

    def test_what_a_later_sieve_may_add(self, copy):
        """Keys beside `layers` are ignored; of a layer they are refused: it could not be read right."""
        edit_config(copy, checksums={"sieve.safetensors": "0"}, later=[1])
        assert torch.equal(logits(load(copy)[0]), logits(tiny_pruned("llama")))

    def test_ranks_that_lack_a_matrix(self, copy):
        """Transformers would warn, and go on with random weights."""
        layers = json.loads((copy / "config.json").read_text())["quantization_config"]["layers"]
        del layers["model.layers.0.self_attn.q_proj"]
        edit_config(copy, layers=layers)
        with pytest.raises(InputError, match=r"lacks the weights model\.layers\.0\.self_attn\.q_proj\.weight"):
            load(copy)

    def test_pairs_taken_for_pivoted(self, copy):
        layers = json.loads((copy / "config.json").read_text())["quantization_config"]["layers"]
        edit_config(copy, layers={name: layer | {"format": "pivoted_pair"} for name, layer in layers.items()})
        with pytest.raises(StorageError, match=r"lack what config\.json asks for: the permutation of"):
            load(copy)

    def test_rank_that_differs_from_the_weights(self, copy):
        edit_config(copy, layers={"model.layers.0.self_attn.q_proj": {"format": "pair", "rank": 31}})
        with pytest.raises(InputError):
            load(copy)

    def test_cut_off_weights(self, copy):
        weights = copy / "sieve.safetensors"
        weights.write_bytes(weights.read_bytes()[:-100])
        with pytest.raises(StorageError, match=f"{weights} is damaged"):
            load(copy)
        (copy / "checksums.json").unlink()
        with pytest.raises(InputError, match=f"cannot load {copy}") as caught:
            load(copy)
        assert "\n" not in str(caught.value)

    def test_no_folder(self, tmp_path):
        with pytest.raises(InputError, match="is not a folder"):
            load(tmp_path / "nothing")

    def test_dense_model_cannot_be_quantised_to_sieve(self, tmp_path):
        from sieve.checkpoint.hf_quantizer import SieveConfig

        tiny_model("llama").save_pretrained(tmp_path)
        with pytest.raises(ValueError, match="pre-quantized"):
            AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=SieveConfig({}))


class TestNothingHalfWritten:
    def test_existing_folder(self, tmp_path):
        (tmp_path / "model").mkdir()
        (tmp_path / "model" / "mine.txt").write_text("keep")
        with pytest.raises(InputError, match="already exists"):
            save(tiny_pruned("llama"), tiny_tokenizer(), tmp_path / "model")
        assert [file.name for file in (tmp_path / "model").iterdir()] == ["mine.txt"]

    def test_empty_folder_is_used(self, tmp_path):
        (tmp_path / "model").mkdir()
        save(tiny_pruned("llama"), tiny_tokenizer(), tmp_path / "model")
        load(tmp_path / "model")

    @pytest.mark.parametrize("stage", ["save_pretrained", "fsync"])
    def test_full_disk(self, tmp_path, monkeypatch, stage):
        def full(*args, **kwargs):
            raise OSError(28, "No space left on device")

        model = tiny_pruned("llama")
        monkeypatch.setattr(*((model, stage) if stage == "save_pretrained" else (os, stage)), full)
        with pytest.raises(StorageError, match="No space left"):
            save(model, tiny_tokenizer(), tmp_path / "model")
        assert list(tmp_path.iterdir()) == []

    def test_really_full_disk(self, tmp_path):
        with small_disk(tmp_path / "disk", kilobytes=64) as disk:
            with pytest.raises(StorageError, match="free some space"):
                save(tiny_pruned("llama"), tiny_tokenizer(), disk / "model")
            assert list(disk.iterdir()) == []

    def test_interrupt(self, tmp_path, monkeypatch):
        tokenizer = tiny_tokenizer()

        def interrupt(*args, **kwargs):
            raise KeyboardInterrupt

        monkeypatch.setattr(tokenizer, "save_pretrained", interrupt)  # when the weights are written already
        with pytest.raises(KeyboardInterrupt):
            save(tiny_pruned("llama"), tokenizer, tmp_path / "model")
        assert list(tmp_path.iterdir()) == []


@contextmanager
def small_disk(path, kilobytes):
    path.mkdir()
    mount = shutil.which("mount")
    command = [mount, "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(path)]
    if mount is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root on Linux")
    try:
        yield path
    finally:
        subprocess.run(["umount", str(path)], check=True)


@pytest.mark.parametrize("value", [-1, 10**7, 32, "twice"])
def test_a_permutation_that_is_none(pivoted_folder, tmp_path, value):
    """Refused at loading by us and by transformers, with the matrix's name: its outputs would go astray."""
    folder = shutil.copytree(pivoted_folder, tmp_path / "copy")
    weights = load_file(folder / "sieve.safetensors")
    key = next(key for key in weights if key.endswith("q_proj.permutation"))
    weights[key][3] = weights[key][0] if value == "twice" else value
    save_file(weights, folder / "sieve.safetensors", {"format": "pt"})
    words = rf"permutation of {key.removesuffix('.permutation')} does not hold each of 0 to 31 once"
    with pytest.raises(StorageError, match=words):
        AutoModelForCausalLM.from_pretrained(folder)
    with pytest.raises(StorageError):  # by its checksum, where it has one
        load(folder)
