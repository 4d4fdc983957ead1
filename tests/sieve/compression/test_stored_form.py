"""What is said of a pruned model is true of what is stored: confirmed, reported and evaluated anew, the same bits."""

import json

import numpy as np
import pytest
import torch

import sieve
from sieve.compression.plan import Plan
from sieve.errors import ToleranceError
from sieve.evaluation.generation import greedy_answers
from sieve.evaluation.scoring import evaluate
from sieve.models.linears import prunable
from sieve.models.loading import load_model
from sieve.nn.formats import pivoted_pair
from sieve.searchers.algorithms.base import Searcher
from sieve.searchers.problem import within
from sieve.searchers.run import run_search
from sieve.tasks import load_task
from tests.sieve.test_cli import options, own_cache, run  # noqa: F401 (fixtures)
from tests.tiny_models import tiny_model, tiny_tokenizer

SPLITS = ("fitness", "validation")
GENETIC = ("--search", "ga", "--kept", 0.6, "--generations", 1, "--population", 4, "--offspring", 4, "--bottlenecks", 0)


@pytest.mark.parametrize(
    "change",
    [
        (),
        ("--no-pivot",),
        ("--dtype", "bfloat16"),
        ("--dtype", "bfloat16", "--shared-input"),
        ("--shared-input", "--refit"),
        ("--dtype", "bfloat16", "--refit", "--no-pivot"),
        GENETIC,
        (*GENETIC, "--refit", "--dtype", "bfloat16"),
        ("--method", "wanda", "--dtype", "bfloat16"),
        ("--method", "sparsegpt", "--pattern", "2:4"),
    ],
    ids=lambda change: " ".join(map(str, change)),
)
def test_eval_says_what_the_report_says(run, world, tmp_path, change):  # noqa: F811
    output = tmp_path / "pruned"
    code, out, err = run(*options(world, output), *change, "--json")
    assert code == 0, err
    report = json.loads(out)
    for split in (*SPLITS, "test"):
        found = json.loads(run("eval", output, "--split", split, "--json")[1])
        assert found["accuracy"] == report["accuracy"]["pruned"][split]
        assert found["loglik"] == report["loglik"]["pruned"][split]


def made(name, dtype, pivot, masks, world):
    """A tiny model, its tokenizer, factors or masks of it, and the task."""
    model, tokenizer, task = tiny_model(name, dtype=dtype), tiny_tokenizer(), load_task(world.task)
    statistics = sieve.calibrate(model, tokenizer, task, 1000, "wanda" if masks else "output_aligned")
    factors = sieve.mask(model, statistics, "wanda") if masks else sieve.project(model, statistics, pivot=pivot)
    return model, tokenizer, factors, task


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["llama", "gpt2"])  # the latter has biases, which take up means
@pytest.mark.parametrize(("pivot", "masks"), [(True, False), (False, False), (False, True)])
def test_the_searched_scores_are_those_of_the_applied_plan(world, name, dtype, pivot, masks):
    model, tokenizer, factors, task = made(name, dtype, pivot, masks, world)
    dense = {name: parameter.clone() for name, parameter in model.named_parameters()}
    result = run_search(model, tokenizer, factors, task, 0.9, "uniform", rank_multiple=4)
    assert all(torch.equal(parameter, dense[name]) for name, parameter in model.named_parameters())
    sieve.apply_(model, factors, result.plan)
    for split in SPLITS:
        again = evaluate(model, tokenizer, task, task.splits()[split])
        assert np.array_equal(result.pruned[split].score, again.score)
        assert np.array_equal(result.pruned[split].loglik, again.loglik)


def test_applied_is_apply_for_a_while(world):
    model, _, factors, _ = made("llama", torch.bfloat16, True, False, world)
    names = [name for name, _ in model.named_modules()]
    plan = Plan.uniform(prunable(model, True).values(), 0.5, 4)
    other = sieve.apply_(tiny_model("llama", dtype=torch.bfloat16), factors, plan)
    with factors.stored(model, plan):
        within_block = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    expected = other.state_dict()
    assert within_block.keys() == expected.keys()
    assert all(torch.equal(within_block[name], expected[name]) for name in expected)
    assert [name for name, _ in model.named_modules()] == names


ECHO = """\
name: echo
type: generation
data: words.jsonl
prompt: "{word}"
answer: reply
max_new_tokens: 3
"""


@pytest.fixture(scope="module")
def echo(tmp_path_factory):
    """Folder of a bfloat16 model that writes small letters, and a task whose references are its own answers."""
    folder, tokenizer = tmp_path_factory.mktemp("echo"), tiny_tokenizer()
    model = tiny_model("gpt_neox", seed=1)
    with torch.no_grad():
        small = torch.tensor([chr(token).islower() for token in range(model.config.vocab_size)])
        model.get_output_embeddings().weight[~small] = 0
    model.to(torch.bfloat16).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    draw = np.random.default_rng(0)
    words = ["".join(chr(97 + code) for code in draw.integers(0, 26, 4)) for _ in range(240)]
    replies, _ = greedy_answers(model, tokenizer, [tokenizer(word).input_ids for word in words], 3, None, 2048)
    rows = [{"word": word, "reply": reply} for word, reply in zip(words, replies, strict=True)]
    (folder / "words.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "echo.yaml").write_text(ECHO)
    return str(folder / "model"), str(folder / "echo.yaml")


def spoilt_search(ranks, echo, monkeypatch, **options):
    """A search where pairs of these ranks are spoilt in their stored form alone, as rounding can spoil answers."""
    plain = pivoted_pair.rounded_pivot

    def rounded_pivot(*given):
        A, C, permutation = plain(*given)
        return (A * 0, C * 0, permutation) if len(A) in ranks else (A, C, permutation)

    with monkeypatch.context() as patched:
        patched.setattr(pivoted_pair, "rounded_pivot", rounded_pivot)
        (model, tokenizer), task = load_model(echo[0]), load_task(echo[1])
        factors = sieve.project(model, sieve.calibrate(model, tokenizer, task, 1000), pivot=True)
        return run_search(model, tokenizer, factors, task, search="uniform", rank_multiple=4, **options)


def test_the_next_larger_candidate_is_tried_where_the_stored_form_fails(echo, monkeypatch):
    plain = spoilt_search((), echo, monkeypatch, tolerance=0.5)
    spoilt = spoilt_search(range(24), echo, monkeypatch, tolerance=0.5)
    assert min(plain.plan.ranks().values()) < 24 <= min(spoilt.plan.ranks().values())
    assert plain.plan in [candidate.plan for candidate in spoilt.tried]
    assert spoilt.validation_attempts > plain.validation_attempts
    assert within(spoilt.pruned["validation"], spoilt.dense["validation"], 0.5)
    with pytest.raises(ToleranceError, match=r"on validation data \(none of the \d+ candidates.*nearest: \d"):
        spoilt_search(range(99), echo, monkeypatch, tolerance=0.5)


def test_validation_chooses_among_finalists_by_their_stored_form(echo, monkeypatch):
    """The one that is better by its slices is taken, unless it is spoilt as it is stored."""
    offered = [Plan(dict.fromkeys(prunable(load_model(echo[0])[0]), rank), pivoted=True) for rank in (12, 24)]
    monkeypatch.setattr(Searcher, "run", lambda self, problem: map(problem.evaluate, offered))
    for spoilt, taken in (((), 24), ((24,), 12)):
        result = spoilt_search(spoilt, echo, monkeypatch, kept=0.99)
        assert set(result.plan.values()) == {taken}
        assert result.evaluated[1].scores.accuracy > result.evaluated[0].scores.accuracy


@pytest.mark.parametrize("tolerance", [0.2, 0.5])
def test_written_answers_are_within_the_tolerance_as_they_are_stored(run, echo, tmp_path, tolerance):  # noqa: F811
    """Rounding changes some of these answers: the slices of a search and the pivoted pairs do not write the same."""
    output = tmp_path / "pruned"
    code, out, err = run(
        "prune", echo[0], "--task", echo[1], "--output", output, "--tolerance", tolerance, "--search", "uniform",
        "--calibration-tokens", 1000, "--rank-multiple", 2, "--method", "output_aligned", "--json",
    )  # fmt: skip
    assert code == 0, err
    accuracy = json.loads(out)["accuracy"]
    dense, pruned = (accuracy[which]["validation"]["value"] for which in ("dense", "pruned"))
    assert dense > 0.9
    assert pruned >= (1 - tolerance) * dense - 1e-9
    assert json.loads(run("eval", output, "--split", "validation", "--json")[1])["accuracy"]["value"] == pruned
