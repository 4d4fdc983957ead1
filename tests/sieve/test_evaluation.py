"""`sieve eval --against`: differences are of the same examples, whatever either tokenizer leaves out."""

import json

import numpy as np
import pytest
import torch

from sieve.errors import InputError
from sieve.evaluation.scoring import Scores
from sieve.run.evaluate import _in_common, evaluate_source
from sieve.tasks import load_task
from tests.tiny_models import VOCABULARY, tiny_model, tiny_tokenizer

TASK = """\
name: spices
type: perplexity
data: texts.jsonl
prompt: "{text}"
"""


SALTS, RICES = ([f"{word}{i:02}" for i in range(40)] for word in ("salt", "rice"))


def task_of(folder, texts):
    (folder / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    (folder / "task.yaml").write_text(TASK)
    return str(folder / "task.yaml")


def saved(folder, words):
    """One and the same model; each of the words is one token, and so leaves nothing to score in a text of its own."""
    tokenizer = tiny_tokenizer()
    tokenizer.bos_token = tokenizer.eos_token = None
    tokenizer.add_tokens(words)
    torch.manual_seed(0)  # for the new rows
    model = tiny_model("llama")
    model.resize_token_embeddings(VOCABULARY + len(words), mean_resizing=False)
    model.config.bos_token_id = model.config.eos_token_id = None
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.mark.filterwarnings("ignore:.*too short to be scored")
def test_each_tokenizer_leaves_out_its_own_texts(tmp_path):
    task = task_of(tmp_path, [*SALTS, *RICES, *(f"{word} for every day" for word in SALTS + RICES)])
    texts = [example.target for example in load_task(task).splits(0)["test"]]
    first, second = saved(tmp_path / "first", SALTS), saved(tmp_path / "second", RICES)
    result = evaluate_source(first, task, against=second)
    assert 0 < result["accuracy"]["n"] == sum(text not in SALTS for text in texts) < len(texts)
    common = [text for text in texts if text not in SALTS + RICES]
    for measure in ("accuracy_difference", "loglik_difference"):
        assert result[measure]["n"] == len(common)
    same = evaluate_source(first, task, against=saved(tmp_path / "third", SALTS))
    assert same["accuracy_difference"] == {"value": 0, "low": 0, "high": 0, "n": result["accuracy"]["n"]}


def test_places_are_those_of_the_same_examples():
    """As many on both sides, but others."""
    values = np.arange(4.0)
    one = Scores(values[:3], values[:3], 1, examples=np.array([0, 1, 2]))
    other = Scores(values[1:], values[1:], 1, examples=np.array([1, 2, 3]))
    mine, theirs = _in_common(one, other)
    assert np.array_equal(one.score[mine], [1, 2])
    assert np.array_equal(other.score[theirs], [1, 2])
    whole = Scores(values, values, 1)
    mine, theirs = _in_common(whole, other)
    assert np.array_equal(whole.score[mine], other.score[theirs])


@pytest.mark.filterwarnings("ignore:.*too short to be scored")
def test_nothing_in_common(tmp_path):
    task = task_of(tmp_path, [*SALTS, *RICES])
    with pytest.raises(InputError, match="can score no example in common"):
        evaluate_source(saved(tmp_path / "first", SALTS), task, against=saved(tmp_path / "second", RICES))
