"""`predict` gives the answers that `evaluate` judges, without knowing the right ones."""

import math

import numpy as np
import pytest
import torch

import sieve
from sieve.errors import InputError
from sieve.evaluation.predict import READ_AHEAD
from sieve.evaluation.scoring import evaluate
from sieve.tasks import Task
from tests.tiny_models import tiny_model, tiny_tokenizer

ROWS = [
    {
        "id": number,
        "text": "so " * (number * 7 % 13) + f"case {number}",
        "more": {"options": [f"answer {number * place % 9} {'x' * place}" for place in range(2 + number % 3)]},
        "label": number % 2,
    }
    for number in range(60)
]
UNANSWERED = [{name: value for name, value in row.items() if name != "label"} for row in ROWS]


@pytest.fixture(scope="module")
def model():
    return tiny_model("llama")


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


def choice_task(**options):
    given = {"choices": "more.options", "answer": "label"} | options
    return Task("t", "multiple_choice", ROWS, "Text: {text}\nAnswer:", **given)


@pytest.mark.parametrize("normalize", ["none", "length", "prior"])
@pytest.mark.parametrize("shots", [0, 2])
def test_the_answers_are_those_that_are_judged(model, tokenizer, normalize, shots):
    task = choice_task(normalize=normalize, shots=shots)
    test = task.splits(seed=3)["test"]
    scores = evaluate(model, tokenizer, task, test)
    asked = [UNANSWERED[int(example.where.split()[-1]) - 1] for example in test]
    found = list(sieve.predict(model, tokenizer, task, asked, seed=3))
    assert [one.index == example.answer for one, example in zip(found, test, strict=True)] == scores.score.tolist()
    for one, example, logprob in zip(found, test, scores.choice_logprob, strict=True):
        assert list(one.probabilities) == [text.strip() for text in example.choices]
        assert one.probabilities[example.target.strip()] == pytest.approx(math.exp(logprob), abs=1e-4)
        assert sum(one.probabilities.values()) == pytest.approx(1)
        assert one.answer == max(one.probabilities, key=one.probabilities.get)


def test_order_and_fields_are_kept_and_numbers_depend_on_no_other_row(model, tokenizer):
    task = choice_task()
    together = list(sieve.predict(model, tokenizer, task, UNANSWERED))
    assert [one.row for one in together] == UNANSWERED
    for row, one in zip(UNANSWERED[:20], together, strict=False):
        (alone,) = sieve.predict(model, tokenizer, task, [row])
        assert alone.answer == one.answer
        assert list(alone.probabilities.values()) == pytest.approx(list(one.probabilities.values()), abs=1e-4)


def test_rows_are_read_as_answers_are_taken_and_the_model_stays_as_it_was(model, tokenizer):
    read = 0

    def endless():
        nonlocal read
        while True:
            read += 1
            yield {"text": f"{read}"}

    answers = sieve.predict(model, tokenizer, choice_task(choices=[" yes", " no"]), endless())
    assert read == 0
    model.train()
    next(answers)
    assert 0 < read <= READ_AHEAD
    assert model.training
    assert not torch.is_inference_mode_enabled()
    model.eval()
    for _ in range(2 * READ_AHEAD):
        next(answers)
    assert read <= 3 * READ_AHEAD


def test_long_rows_are_not_read_ahead(model, tokenizer, monkeypatch):
    monkeypatch.setattr("sieve.evaluation.predict._CHARACTERS", 100)
    read = []
    rows = ({"text": "long " * 10, "number": read.append(number)} for number in range(9))
    next(sieve.predict(model, tokenizer, choice_task(choices=[" yes", " no"]), rows))
    assert len(read) == 2


@torch.no_grad()
def written(model, tokenizer, prompt, tokens):
    ids = tokenizer.encode(prompt)
    begun = len(ids)
    while len(ids) < begun + tokens and tokenizer.eos_token_id not in ids[begun:]:
        ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    return tokenizer.decode([one for one in ids[begun:] if one != tokenizer.eos_token_id])


@pytest.mark.parametrize("prompt", ["{text} is", "{text}"])
def test_answers_are_written(model, tokenizer, prompt):
    rows = [{"text": text, "n": place} for place, text in enumerate(["a", "the long one", "bb", "a", "the longer one"])]
    data = [{"text": "x", "answer": str(number)} for number in range(20)]
    task = Task("t", "generation", data, prompt, answer="answer", max_new_tokens=5, stop=None)
    found = list(sieve.predict(model, tokenizer, task, rows))
    assert [one.row for one in found] == rows
    for one, row in zip(found, rows, strict=True):
        assert one.answer == written(model, tokenizer, prompt.format(**row), 5).strip()
        assert one.probabilities == {}


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([{"id": 1}], "prompt names an unknown field 'text'"),
        ([{"text": "a", "more": {"options": ["a", "b"]}}, {"more": {"options": ["a"]}}], "row 2 has no field 'text'"),
        ([{"text": "a", "more": {"options": ["a"]}}], "row 1: the field 'more.options' must hold a list of at least"),
        ([{"text": "a", "more": {"options": ["a", "a "]}}], "row 1 has the choice 'a' twice"),
    ],
)
def test_rows_that_cannot_be_asked(model, tokenizer, rows, words):
    with pytest.raises(InputError, match=words):
        list(sieve.predict(model, tokenizer, choice_task(), rows))


def test_texts_have_no_answers(model, tokenizer):
    task = Task("t", "perplexity", [{"text": "a"}], "{text}")
    with pytest.raises(InputError, match="sieve eval"):
        sieve.predict(model, tokenizer, task, [])


def test_probabilities_of_extreme_choices_are_numbers(model, tokenizer):
    (one,) = sieve.predict(model, tokenizer, choice_task(choices=[" a", " " + "zq" * 90]), [{"text": "a"}])
    assert np.isfinite(list(one.probabilities.values())).all()
