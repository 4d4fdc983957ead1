"""The classifier of letters: what it can learn, what it cannot, and that it is naive Bayes."""

import math
import random
from collections import Counter

import numpy as np
import pytest

from sieve.evaluation.chance import Chance, control_levels
from sieve.evaluation.ngrams import SMOOTHINGS, _by_prompts, _grams, ngram_accuracies
from sieve.tasks import Example, Task

CHOICE = Task("t", "multiple_choice", [{"q": "?"}], "{q}", choices=(" a", " b"), answer="q")
WRITTEN = Task("t", "generation", [{"q": "?"}], "{q}", answer="q")
LANDS = {"Poland": ("ow", "sk", "cz"), "Japan": ("ka", "shi", "mo"), "Spain": ("illa", "ero", "uez")}


def cities(count, seed=0):
    """Names whose letters tell the country; the place of the right choice does not."""
    chance = random.Random(seed)
    rows = []
    for _ in range(count):
        land = chance.choice(list(LANDS))
        name = "".join(chance.choice(LANDS[land]) for _ in range(3)).title()
        choices = chance.sample(list(LANDS), 3)
        prompt = f"The city of {name} is in"
        rows.append(Example(prompt, tuple(f" {one}" for one in choices), choices.index(land), question=prompt))
    return rows


def test_letters_that_tell_are_learned_and_chance_is_not_beaten_without():
    training, examples = cities(120), cities(200, seed=1)
    assert ngram_accuracies(CHOICE, training, {"test": examples})["test"] > 0.95
    chance = random.Random(2)
    blind = [Example(f"{chance.random()}", one.choices, one.answer) for one in examples]
    found = ngram_accuracies(CHOICE, [Example(f"{chance.random()}", one.choices, one.answer) for one in training],
                             {"test": blind})  # fmt: skip
    assert found["test"] == pytest.approx(1 / 3, abs=0.12)


def test_answers_of_a_model_take_the_place_of_labels():
    training, examples = cities(120), cities(100, seed=1)
    wrong = [(one.answer + 1) % 3 for one in training]
    assert ngram_accuracies(CHOICE, training, {"test": examples}, wrong)["test"] < 0.3


def test_choices_that_are_sentences_are_told_by_how_they_look():
    """No text is an answer twice: what tells is that right ones are written otherwise."""
    chance = random.Random(0)
    rows = []
    for number in range(200):
        right, wrong = f" gently with {chance.random()}", f" angrily by {chance.random()}"
        answer = chance.randrange(2)
        rows.append(Example(f"goal {number}", (wrong, right)[:: 1 if answer else -1], answer))
    assert ngram_accuracies(CHOICE, rows[:100], {"test": rows[100:]})["test"] == 1


def test_written_answers_by_the_metric():
    rows = [Example(one.prompt, references=(one.target.strip(), "another")) for one in cities(200)]
    found = ngram_accuracies(WRITTEN, rows[:120], {"fitness": rows[120:160], "test": rows[160:]})
    assert list(found) == ["fitness", "test"]
    assert min(found.values()) > 0.9


@pytest.mark.parametrize("smoothing", SMOOTHINGS)
def test_it_is_naive_bayes(smoothing):
    """Against the definition, term by term; one choice is no answer of the training rows."""
    training, examples = cities(40), cities(20, seed=1)
    examples = [Example(one.prompt, (*one.choices, " Peru"), one.answer) for one in examples]
    answers = [one.answer for one in training]
    texts = [one.prompt.removeprefix("The city of ") for one in (*training, *examples)]
    counts, prior = {}, Counter()
    for one, text in zip(training, texts, strict=False):
        label = one.target.strip()
        counts.setdefault(label, Counter()).update(_grams(text))
        prior[label] += 1
    known = set().union(*counts.values())

    def logp(label, grams):
        mine = counts.get(label, Counter())
        size = sum(mine.values()) + smoothing * len(known)
        seen = sum(n * math.log((mine[gram] + smoothing) / size) for gram, n in grams.items() if gram in known)
        return math.log((prior[label] + 0.5) / len(training)) + seen

    want = [
        int(np.argmax([logp(choice.strip(), _grams(text)) for choice in one.choices]))
        for one, text in zip(examples, texts[40:], strict=True)
    ]
    assert _by_prompts(training, answers, examples)(smoothing) == want


def test_none_for_texts_and_for_few_rows():
    texts = Task("t", "perplexity", [{"q": "?"}], "{q}")
    rows = [Example("", references=("text",))] * 20
    assert ngram_accuracies(texts, rows, {"test": rows}) == {}
    assert control_levels(texts, {"test": rows}, rows) == {"test": None}
    assert ngram_accuracies(CHOICE, cities(7), {"test": cities(5)}) == {}


def test_it_stands_beside_chance_and_majority():
    training, examples = cities(120), cities(100, seed=1)
    level = control_levels(CHOICE, {"test": examples}, training)["test"]
    assert level == Chance(
        pytest.approx(1 / 3), level.majority, ngram_accuracies(CHOICE, training, {"test": examples})["test"]
    )
    assert level.best == level.ngrams
    assert str(level).endswith(f"n-gram classifier {level.ngrams:.3f}")
