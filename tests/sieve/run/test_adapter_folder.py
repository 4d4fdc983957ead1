"""An adapter's folder in the place of a model's: `sieve eval` scores it, `sieve info` shows what its base was."""

import json

import pytest
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

import sieve
from sieve.cli import app

peft = pytest.importorskip("peft")


@pytest.fixture(scope="module")
def folders(world, tmp_path_factory):
    """A pruned model, and an adapter on it that always answers alike."""
    place = tmp_path_factory.mktemp("adapted")
    options = {"search": "uniform", "tolerance": 0.9, "rank_multiple": 4, "calibration_tokens": 512}
    recipe = sieve.Recipe(world.model, world.task, allow_no_signal=True, **options)
    sieve.prune(recipe, place / "model")
    model = AutoModelForCausalLM.from_pretrained(place / "model")
    config = peft.LoraConfig(target_modules=["q_proj", "down_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    peft.get_peft_model(model, config).save_pretrained(place / "adapter")
    return place


def said(*arguments):
    result = CliRunner().invoke(app, [*map(str, arguments), "--json"])
    assert result.exit_code == 0, (result.output, result.exception)
    return json.loads(result.stdout)


def test_eval_scores_the_adapter_on_the_task_of_its_base(folders):
    adapted, base = said("eval", folders / "adapter"), said("eval", folders / "model")
    assert adapted["task"] == base["task"] == "legs"
    assert adapted["same_data"] is True
    assert adapted["loglik"] != base["loglik"]


def test_info_says_whose_numbers_they_are(folders):
    report = said("info", folders / "adapter")
    assert report["kept"] == said("info", folders / "model")["kept"]
    assert "without the adapter" in report["notes"][-1]


def test_a_merged_folder_is_scored_as_its_adapter_and_keeps_the_report(folders):
    model, tokenizer = sieve.load(folders / "model")
    merged = peft.PeftModel.from_pretrained(model, folders / "adapter").merge_and_unload()
    sieve.save(merged, tokenizer, folders / "merged")
    adapted = said("eval", folders / "adapter")
    assert said("eval", folders / "merged")["loglik"]["value"] == pytest.approx(adapted["loglik"]["value"], abs=1e-3)
    report = said("info", folders / "merged")
    assert report["kept"] == said("info", folders / "model")["kept"]
    assert "changed and saved again" in report["notes"][-1]
