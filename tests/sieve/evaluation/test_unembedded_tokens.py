"""A tokenizer that is larger than the model's embedding: nothing but tokens that occur is refused."""

from dataclasses import replace

import numpy as np
import pytest

from sieve.calibration.collect import calibrate
from sieve.errors import InputError
from sieve.evaluation.scoring import evaluate
from sieve.tasks import Task
from tests.tiny_models import TINY, tiny_model, tiny_tokenizer


@pytest.fixture(scope="module")
def model():
    return tiny_model("llama")


@pytest.fixture
def larger():
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["wolf"])
    assert len(tokenizer) == TINY["llama"]().vocab_size + 1
    return tokenizer


def tasks(text):
    rows = [{"q": f"{text} {i}", "a": "yes" if i % 2 else "no"} for i in range(200)]
    yield Task("t", "multiple_choice", rows, "{q}", [" yes", " no"], "a")
    yield Task("t", "generation", rows, "{q}", answer="a", max_new_tokens=2)
    yield Task("t", "perplexity", rows, "{q}")


def test_refused_before_the_model_runs(model, larger, monkeypatch):
    monkeypatch.setattr(model, "forward", None)
    for task in tasks("wolf"):
        splits = task.splits()
        with pytest.raises(InputError, match=r"gives 'wolf' the id 128, and the model's .* up to 127"):
            evaluate(model, larger, task, splits["test"])
        with pytest.raises(InputError, match="gives 'wolf' the id 128"):
            calibrate(model, larger, task, tokens=512)


def test_tokens_that_do_not_occur_do_no_harm(model, larger):
    for task in tasks("fox"):
        assert len(evaluate(model, larger, task, task.splits()["test"]).score) == 40


def test_a_padding_token_without_an_embedding(model, larger):
    task = list(tasks("fox"))[1]
    examples = [replace(example, prompt=example.prompt * (1 + index % 3)) for index, example in enumerate(
        task.splits()["test"])]  # fmt: skip
    want = evaluate(model, larger, task, examples)
    larger.add_special_tokens({"pad_token": "<padding>"})
    assert larger.pad_token_id == 129
    got = evaluate(model, larger, task, examples)
    assert np.array_equal(got.score, want.score)
    assert np.array_equal(got.loglik, want.loglik)
