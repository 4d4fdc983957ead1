"""A trimmed folder: evaluated, compared and healed over the tokens that it has."""

import json

import pytest

import sieve
from sieve.compression.vocabulary.trim import task_sequences, trim_vocabulary_
from sieve.run.evaluate import evaluate_source
from sieve.run.report.read import read_report
from sieve.tasks import load_task
from tests.sieve.conftest import ROWS, TASK, write_task
from tests.sieve.test_cli import options, own_cache, run  # noqa: F401 (fixtures)
from tests.tiny_models import tiny_bpe, tiny_model


@pytest.fixture(scope="module")
def small_world(tmp_path_factory):
    """A model with a byte-level tokenizer, a task, and texts of other tokens."""
    folder = tmp_path_factory.mktemp("bpe")
    task = write_task(folder / "legs.yaml", TASK.replace('[" few", " many"]', '[" few", " fog"]'), ROWS)
    tokenizer = tiny_bpe(["words of other texts are there as well, wordy ones"] * 9 + [str(row) for row in ROWS])
    model = tiny_model("llama")
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    sieve.save(model, tokenizer, folder / "model")
    return type("World", (), {"model": str(folder / "model"), "task": task})


def test_a_trimmed_folder_is_compared_and_healed_over_its_own_tokens(run, small_world, tmp_path):  # noqa: F811
    given = [*options(small_world, tmp_path / "pruned"), "--search", "uniform", "--kept", 0.4, "--json"]
    code, _, err = run(*given)
    assert code == 0, err
    model, tokenizer = sieve.load(tmp_path / "pruned", device="cpu")
    task = load_task(small_world.task)
    sequences = task_sequences(tokenizer, task, task.splits()["calibration"])
    texts = [tokenizer.decode(ids, skip_special_tokens=True) for ids in sequences]
    done = trim_vocabulary_(model, tokenizer, texts)
    assert len(done.kept) < done.before
    recipe = {"model": small_world.model, "task": small_world.task, "seed": 0}
    sieve.save(model, tokenizer, tmp_path / "trimmed", read_report(tmp_path / "pruned"), recipe, task)

    found = evaluate_source(str(tmp_path / "trimmed"), against=small_world.model)
    assert any(f"over the {len(done.kept)} tokens" in note for note in found["notes"])
    back = evaluate_source(small_world.model, small_world.task, against=str(tmp_path / "trimmed"))
    assert back["loglik_difference"]["value"] == pytest.approx(-found["loglik_difference"]["value"], abs=1e-9)
    full = evaluate_source(str(tmp_path / "pruned"), against=small_world.model)
    assert full["notes"] == [note for note in found["notes"] if "tokens that" not in note]
    # Fewer tokens make all likelihoods larger; the difference to the dense model over the same ones is another one.
    assert found["loglik"]["value"] > full["loglik"]["value"]
    plain = found["loglik"]["value"] - evaluate_source(small_world.model, small_world.task)["loglik"]["value"]
    assert found["loglik_difference"]["value"] != pytest.approx(plain, abs=1e-3)

    code, out, err = run("heal", tmp_path / "trimmed", "--output", tmp_path / "healed", "--heal-steps", 6, "--json")
    assert code == 0, err
    healed = json.loads(out)
    # The setting that came nearest may have been given up before the last step.
    tried = [healed["healing"]["steps_tried"], *(one["steps"] for one in healed["healing"]["tries"])]
    assert max(tried) == 6
    against = evaluate_source(str(tmp_path / "healed"), against=small_world.model)
    assert against["loglik_difference"] == pytest.approx(healed["difference"]["loglik"]["test"], abs=1e-6)
    assert against["accuracy_difference"] == pytest.approx(healed["difference"]["accuracy"]["test"], abs=1e-6)


def test_a_teacher_by_name_is_given_the_tokens_of_the_model(small_world):
    model, tokenizer = sieve.load_model(small_world.model, device="cpu")
    task = load_task(small_world.task)
    sieve.trim_vocabulary_(model, tokenizer, ["Word 12: ant. Legs: few", "Word 12: ant. Legs: fog"])
    healing = sieve.heal(model, tokenizer, task, small_world.model, steps=1)
    assert healing.before == pytest.approx(0, abs=1e-5)
    with pytest.raises(sieve.errors.InputError, match="match_vocabulary_"):
        sieve.heal(model, tokenizer, task, tiny_model("llama"), steps=1)


@pytest.mark.parametrize("more", [(), ("--heal", "--heal-steps", 4, "--shared-input")])
def test_prune_trims_first_and_says_what_is_over_which_tokens(run, small_world, tmp_path, more):  # noqa: F811
    given = [
        *options(small_world, tmp_path / "out"),
        "--search",
        "uniform",
        "--kept",
        0.4,
        "--trim-vocabulary",
        "--json",
    ]
    code, out, err = run(*given, *more)
    assert code == 0, err
    report = json.loads(out)
    model, tokenizer = sieve.load(tmp_path / "out", device="cpu")
    dense, _ = sieve.load_model(small_world.model, device="cpu")
    assert report["vocabulary"]["after"] == len(tokenizer) < report["vocabulary"]["before"]
    sizes = [sum(one.numel() for one in each.parameters()) for each in (model, dense)]
    assert report["parameters"]["model"] == {"pruned": sizes[0], "dense": sizes[1]}
    assert report["parameters"]["model_removed"] == pytest.approx(1 - sizes[0] / sizes[1])
    assert report["bytes"]["dense"] == sum(one.nbytes for one in dense.parameters())
    own = evaluate_source(small_world.model, small_world.task)
    assert report["accuracy"]["dense"]["test"] == own["accuracy"]
    against = evaluate_source(str(tmp_path / "out"), against=small_world.model)
    assert report["difference"]["loglik"]["test"] == pytest.approx(against["loglik_difference"], abs=1e-6)
    assert report["difference"]["accuracy"]["test"] == pytest.approx(against["accuracy_difference"], abs=1e-6)
    assert any("tokens that were kept" in note for note in report["notes"])


def test_a_tokenizer_that_cannot_be_trimmed_is_refused_before_the_long_work(run, world, tmp_path):  # noqa: F811
    code, _, err = run(*options(world, tmp_path / "out"), "--trim-vocabulary")
    assert code == 2
    assert "cannot be trimmed: it is of type WordLevel" in err
    assert "dense\n" not in err
