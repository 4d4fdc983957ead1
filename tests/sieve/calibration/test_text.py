"""Calibration texts: within the context as evaluation's, with the answer in them."""

import pytest

from sieve.calibration.text import calibration_sequences
from sieve.errors import InputError
from sieve.evaluation.scoring import prepare
from sieve.tasks import Example, Task
from sieve.utils import progress
from tests.sieve.tasks.test_encoding import merging
from tests.tiny_models import tiny_model, tiny_tokenizer

TASK = Task("t", "generation", [{"q": "x", "a": "y"}], "{q}", answer="a", max_new_tokens=8)
TEXTS = Task("p", "perplexity", [{"text": "x"}], "{text}")
LONG = [Example(f"{index} " + "x" * 400 + " ask:", references=("yes",)) for index in range(8)]


def middle(task):
    return Task("t", "generation", task.data, "{q}", answer="a", max_new_tokens=8, truncate="middle")


def test_long_prompts_keep_the_answer():
    sequences = calibration_sequences(tiny_tokenizer(), TASK, LONG, 2048, 128)
    assert [len(one.ids) for one in sequences] == [128] * 8
    for ids, start in sequences:
        assert tiny_tokenizer().decode(ids[start:]) == " yes"
        assert tiny_tokenizer().decode(ids).endswith("xx ask: yes")


def test_the_middle_can_be_cut_instead():
    for ids, _ in calibration_sequences(tiny_tokenizer(), middle(TASK), LONG, 2048, 128):
        text = tiny_tokenizer().decode(ids)
        assert text[0].isdigit()
        assert text.endswith("x ask: yes")


def test_special_tokens_at_the_beginning_stay():
    task = Task("t", "generation", [{"q": "x", "a": "y"}], "{q}", answer="a")
    examples = [Example("c" * 400, references=("b",))] * 3
    for ids, start in calibration_sequences(merging("<s> $A </s>"), task, examples, 300, 128):
        assert ids[0] == 0
        assert 0 not in ids[1:]
        assert start == len(ids) - 1  # the space is unknown to this tokenizer


def test_the_budget_cuts_the_last_prompt_not_its_answer():
    sequences = calibration_sequences(tiny_tokenizer(), TASK, LONG, 300, 128)
    assert [len(one.ids) for one in sequences] == [128, 128, 44]
    assert tiny_tokenizer().decode(sequences[-1].ids[sequences[-1].start :]) == " yes"
    assert sum(len(one.ids) for one in calibration_sequences(tiny_tokenizer(), TASK, LONG, 258, 128)) == 256


def test_texts_are_read_to_their_end():
    text = "".join(chr(97 + index % 26) for index in range(500))
    sequences = calibration_sequences(tiny_tokenizer(), TEXTS, [Example("", references=(text,))], 2048, 128)
    assert max(len(one.ids) for one in sequences) == 128
    assert "".join(tiny_tokenizer().decode(one.ids[one.start :]) for one in sequences) == text


def test_what_is_cut_and_what_is_little_is_said(capsys):
    with progress.shown():
        calibration_sequences(tiny_tokenizer(), TASK, LONG, 2048, 128)
    said = capsys.readouterr().err
    assert "calibration: 8 prompts are longer than 128 tokens and were cut" in said
    assert "only 1,024 tokens to calibrate with, where 16,000 or more are advised" in said
    assert "or let the model generate the rest: --generated-tokens 14976" in said


def test_generated_text_counts(capsys):
    for generated in (14_975, 14_976):
        with progress.shown():
            calibration_sequences(tiny_tokenizer(), TASK, LONG, 2048, 128, generated)
        said = capsys.readouterr().err
        assert ("only 15,999 tokens to calibrate with" in said) == (generated == 14_975)


def test_an_answer_beyond_the_context():
    with pytest.raises(InputError, match="an answer is longer than the model's context"):
        calibration_sequences(tiny_tokenizer(), TASK, [Example("q", references=("y" * 300,))], 2048, 128)


@pytest.mark.parametrize("task", [TASK, middle(TASK)], ids=["left", "middle"])
def test_evaluation_counts_what_it_cuts(task):
    model = tiny_model("llama")
    prepared = prepare(model, tiny_tokenizer(), task, [*LONG, Example("short", references=("yes",))])
    assert prepared.truncated == 8
    context = model.config.max_position_embeddings
    assert prepared.plain_tokens < 9 * 2 * context
