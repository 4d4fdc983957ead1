"""The model card says how to load the model, and what the report measured."""

import re

import pytest
from huggingface_hub import ModelCard

from sieve.checkpoint.card import model_card
from sieve.nn.formats.masked import Masked
from sieve.nn.formats.pair import Pair
from sieve.nn.formats.pivoted_pair import PivotedPair


def interval(value, n=200):
    return {"value": value, "low": value - 0.05, "high": value + 0.05, "n": n}


REPORT = {
    "model": "smollm2",
    "task": "geography",
    "tolerance": 0.05,
    "parameters": {"prunable_removed": 0.31, "model_removed": 0.245},
    "bytes": {"dense": 269_000_000, "pruned": 203_100_000},
    "accuracy": {
        "dense": {"validation": interval(0.79), "test": interval(0.801, 1500)},
        "pruned": {"validation": interval(0.77), "test": interval(0.755, 1500)},
    },
}
LAYERS = {"model.layers.0.mlp.up_proj": Pair(8), "model.layers.0.mlp.down_proj": Pair(16)}


def body(card):
    """What a reader sees: the card without its header."""
    return card.split("\n---\n", 1)[1].strip()


def test_first_line_warns():
    first = body(model_card(LAYERS)).splitlines()[0]
    assert "`import sieve`" in first
    assert "finds no weights" in first


def test_no_package_is_promised_that_no_index_has():
    for task_type in ("multiple_choice", "generation", "perplexity"):
        card = model_card(LAYERS, {**REPORT, "task_type": task_type}, own_code=True)
        assert not re.search(r"pip install (?!-e \.)", card)


def test_the_header_is_what_hubs_read(tmp_path):
    card = ModelCard(model_card(LAYERS, {**REPORT, "task_type": "multiple_choice"}))
    assert card.data.base_model == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert card.data.license == "apache-2.0"
    assert (card.data.library_name, card.data.pipeline_tag) == ("transformers", "text-generation")
    assert card.data.metrics == ["accuracy"]
    (result,) = card.data.eval_results
    assert (result.dataset_name, result.metric_value, result.dataset_split) == ("geography", 0.755, "test")
    written = ModelCard(model_card(LAYERS, {**REPORT, "task_type": "generation", "metric": "rouge_l"}))
    assert written.data.metrics == ["rouge"]
    own = ModelCard(model_card(LAYERS, {**REPORT, "task_type": "generation", "metric": "mine:score"}))
    assert own.data.metrics is None
    assert ModelCard(model_card(LAYERS)).data.base_model is None


def test_a_base_model_in_a_folder_gives_its_license_and_no_name(tmp_path):
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n")
    data = ModelCard(model_card(LAYERS, {**REPORT, "model": str(tmp_path)})).data
    assert (data.license, data.base_model) == ("mit", None)
    (tmp_path / "README.md").write_text("---\nlicense: 'mit\\n\\e[2J'\n---\n")
    assert ModelCard(model_card(LAYERS, {**REPORT, "model": str(tmp_path)})).data.license is None
    assert ModelCard(model_card(LAYERS, {**REPORT, "model": "some/model"})).data.base_model == "some/model"


@pytest.mark.parametrize(
    ("task_type", "words"),
    [("multiple_choice", "`sieve predict"), ("generation", "`sieve generate"), ("perplexity", "`sieve eval")],
)
def test_the_card_says_what_the_model_is_for(task_type, words):
    assert words in model_card(LAYERS, {**REPORT, "task_type": task_type})
    assert "free text usually loops" not in model_card(LAYERS, {**REPORT, "task_type": "generation"})


def test_numbers_of_the_report():
    card = model_card(LAYERS, REPORT)
    assert "from `smollm2` for the task `geography`, tolerance 5.0%" in card
    assert "2 of its weight matrices" in card
    assert "prunable matrices: 31.0%" in card
    assert "head included): 24.5%" in card
    assert "weights: 203.1 MB, dense 269.0 MB" in card
    assert "| test | 0.801 [0.751, 0.851] | 0.755 [0.705, 0.805] | 1,500 |" in card


def test_each_format_has_its_sentence():
    card = model_card({"a": Pair(8), "b": PivotedPair(4), "c": PivotedPair(5), "d": Masked(0.25), "e": Masked(0.75)})
    assert "1 of its weight matrices are low-rank pairs;" in card
    assert "2 of its weight matrices are low-rank pairs, stored pivoted;" in card
    assert "2 of its weight matrices are masked: 50.0% of their weights" in card
    assert "finds no weights" not in model_card({"d": Masked(0.25)})
    assert "finds no weights" in model_card({}, stacked=True)


def test_a_partial_report_gives_a_shorter_card():
    assert "## Size" not in model_card(LAYERS, {"task": "mine"})
    assert "## Accuracy" not in model_card(LAYERS, {"accuracy": {"pruned": {"test": interval(0.5)}}})


def test_names_are_text_in_markdown():
    """A name cannot end its code span, its line or its cell."""
    report = {
        **REPORT,
        "model": "a`b``c\n# Heading",
        "task": "`<script>",
        "accuracy": {which: {"a|b [x](y)\x1b": interval(0.5)} for which in ("dense", "pruned")},
    }
    card = model_card(LAYERS, report)
    assert "from ```a`b``c\\n# Heading``` for the task `` `<script> ``," in card
    assert "| a\\|b \\[x\\](y)\\\\x1b | 0.500" in card
    assert "\x1b" not in card
