"""A task that the dense model cannot do is found before the long work; chance and majority stand beside every score."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

import sieve
from sieve.errors import InputError
from sieve.evaluation.chance import Chance, chance_level
from sieve.evaluation.scoring import Scores
from sieve.searchers.signal import signal_notes
from sieve.tasks import Example, load_task
from tests.sieve.conftest import ANIMALS
from tests.sieve.searchers.engine.test_engine import svd_factors
from tests.sieve.test_cli import options, own_cache, run  # noqa: F401 (fixtures)
from tests.tiny_models import tiny_model, tiny_tokenizer

CHOICES = SimpleNamespace(type="multiple_choice")


def question(answer, *choices):
    return Example("?", choices, answer)


def test_chance_is_a_mean_over_examples():
    examples = [question(0, "a", "b"), question(3, "a", "b", "c", "d")]
    assert chance_level(CHOICES, examples) == Chance((1 / 2 + 1 / 4) / 2, 1 / 2)


def test_majority_by_text_where_places_vary_and_by_place_where_texts_do():
    texts = [
        question(0, " yes", " no"),
        question(1, " no", " yes"),
        question(0, " yes", " no"),
        question(1, "yes", "no"),
    ]
    assert chance_level(CHOICES, texts).majority == 3 / 4
    places = [question(1, f"a{i}", f"b{i}", f"c{i}") for i in range(3)] + [question(0, "x", "y", "z")]
    assert chance_level(CHOICES, places).majority == 3 / 4


@pytest.mark.parametrize(("metric", "majority"), [("exact_match", 1 / 2), ("f1", (1 + 1 + 2 / 3 + 0) / 4)])
def test_majority_of_written_answers_is_judged_by_the_metric(metric, majority):
    task = SimpleNamespace(type="generation", metric=metric, normalise="squad")
    references = [("Rome",), ("paris", "rome", "rome"), ("old Rome",), ("Bern",)]
    level = chance_level(task, [Example("?", references=texts) for texts in references])
    assert level.chance is None
    assert level.majority == pytest.approx(majority)


def test_texts_have_no_chance():
    assert chance_level(SimpleNamespace(type="perplexity"), [Example("", references=("text",))]) is None


def test_notes_where_the_interval_reaches_down_to_knowing_nothing():
    examples = [question(i % 2, "a", "b") for i in range(100)]
    right = {part: Scores((np.arange(100) < part).astype(float), np.zeros(100), 1) for part in (55, 90)}
    splits = {"fitness": examples, "validation": examples}
    (note,) = signal_notes(CHOICES, splits, {"fitness": right[55], "validation": right[90]})
    assert "fitness" in note
    assert "chance 0.500, majority class 0.500" in note


WRITTEN = """\
name: legs
type: generation
data: legs.jsonl
prompt: "Word {number}: {animal}. Legs:"
answer: label
max_new_tokens: 2
"""


@pytest.fixture(scope="module")
def hopeless(tmp_path_factory):
    """A generation task whose answers no tiny random model writes."""
    folder = tmp_path_factory.mktemp("hopeless")
    rows = [
        {"number": i, "animal": ANIMALS[i % 8], "label": "quite a few" if i % 4 else "many more"} for i in range(160)
    ]
    (folder / "legs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "legs.yaml").write_text(WRITTEN)
    return str(folder / "legs.yaml")


def test_a_score_of_zero_is_refused_before_calibration(run, world, hopeless, tmp_path):  # noqa: F811
    output = tmp_path / "out"
    given = ("prune", world.model, "--task", hopeless, "--output", output, "--calibration-tokens", 1000,
             "--rank-multiple", 4, "--search", "uniform", "--heal", "none")  # fmt: skip
    for more in ((), ("--kept", 0.5)):
        code, out, err = run(*given, *more)
        assert (code, out) == (2, "")
        last = err.splitlines()[-1]
        assert last.startswith("sieve: ")
        assert "scores 0 on the fitness split" in last
        assert "--allow-no-signal" in last
        assert "\ncalibrate\n" not in err
        assert not list(tmp_path.glob("out*"))
    code, out, err = run(*given, "--allow-no-signal", "--json")
    assert code == 0, err
    report = json.loads(out)
    assert report["accuracy"]["dense"]["fitness"]["value"] == 0
    assert report["accuracy"]["majority"]["fitness"] > 0.5
    assert report["accuracy"]["chance"]["fitness"] is None
    assert len(report["notes"]) == 2
    assert all(note in err for note in report["notes"])
    assert sieve.Recipe.load(output / "recipe.yaml").allow_no_signal is True
    shown = " ".join(run("info", output)[1].split())
    card = (output / "README.md").read_text()
    for text in (shown, card):
        assert "no signal" in text
        assert f"always the most frequent answer {report['accuracy']['majority']['test']:.3f}" in text


def test_python_refuses_it_too(hopeless):
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    factors = svd_factors(model)
    with pytest.raises(InputError, match="scores 0 on the fitness split"):
        sieve.search(model, tokenizer, factors, hopeless, search="uniform")
    assert sieve.search(model, tokenizer, factors, hopeless, search="uniform", allow_no_signal=True)


def test_an_own_fitness_of_zero_is_its_own_affair(hopeless):
    """Minus the distance from the dense model, for one, is 0 for the best."""
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    plan = sieve.search(
        model, tokenizer, svd_factors(model), hopeless, search="uniform", rank_multiple=4,
        fitness=lambda model, examples: [0.0] * len(examples),
    )  # fmt: skip
    assert plan


def test_chance_and_majority_stand_in_report_and_eval(run, world, tmp_path):  # noqa: F811
    output = tmp_path / "out"
    code, out, err = run(*options(world, output), "--json")
    assert code == 0, err
    accuracy = json.loads(out)["accuracy"]
    splits = load_task(world.task).splits()
    for split in ("fitness", "validation", "test"):
        labels = [example.answer for example in splits[split]]
        assert accuracy["chance"][split] == 0.5
        assert accuracy["majority"][split] == max(labels.count(0), labels.count(1)) / len(labels)
    assert f"majority class {accuracy['majority']['fitness']:.3f}" in err
    assert err.index("majority class") < err.index("calibrate\n")
    found = json.loads(run("eval", output, "--json")[1])
    assert (found["chance"], found["majority"]) == (0.5, accuracy["majority"]["test"])
    for shown in (run("eval", output)[1], run("info", output)[1], (output / "README.md").read_text()):
        assert f"chance 0.500, always the most frequent answer {found['majority']:.3f}" in shown


def test_the_dense_model_of_the_report_is_the_model_itself(run, world, tmp_path):  # noqa: F811
    """Not the one with stacked matrices: `sieve eval MODEL` says the same of every split."""
    output = tmp_path / "out"
    code, out, err = run(*options(world, output), "--shared-input", "--dtype", "bfloat16", "--json")
    assert code == 0, err
    report = json.loads(out)
    for split in ("fitness", "validation", "test"):
        found = json.loads(
            run("eval", world.model, "--task", world.task, "--split", split, "--dtype", "bfloat16", "--json")[1]
        )
        assert found["accuracy"] == report["accuracy"]["dense"][split]
        assert found["loglik"] == report["loglik"]["dense"][split]
