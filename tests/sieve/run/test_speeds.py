"""The speeds that a report compares."""

import pytest

import sieve
from sieve.run import speeds
from tests.tiny_models import tiny_model, tiny_pruned

BEFORE = {"prefill": 3.0, "decode": 2.0}


@pytest.fixture
def measured(monkeypatch):
    """Calls of the measurement: the models of each."""
    calls = []

    def measure(*models):
        calls.append(models)
        return [{"prefill": 1.0, "decode": float(number)} for number in range(len(models))]

    monkeypatch.setattr(speeds, "measure_speeds", measure)
    monkeypatch.setattr(speeds, "measure_speed", lambda model: measure(model)[0])
    return calls


@pytest.mark.parametrize(
    ("free", "limit", "loads"), [(2000, None, True), (1999, None, False), (1 << 40, "1B", False), (2000, "1TB", True)]
)
def test_the_dense_model_is_loaded_again_where_there_is_room(measured, monkeypatch, free, limit, loads):
    dense, pruned = tiny_model("llama"), tiny_pruned("llama")
    monkeypatch.setattr(speeds, "free_memory", lambda device: free)
    monkeypatch.setattr(speeds, "load_model", lambda *given: (dense, None))
    recipe = sieve.Recipe("somewhere", "geography", memory_limit=limit)
    found = speeds.compare_speeds(pruned, recipe, 1000, BEFORE)["seconds"]
    assert measured == ([(dense, pruned)] if loads else [(pruned,)])
    assert found["dense"]["decode"] == (0.0 if loads else BEFORE["decode"])
    assert found["pruned"]["decode"] == (1.0 if loads else 0.0)


def test_a_dense_model_that_does_not_decode_is_not_loaded_again(measured):
    assert speeds.compare_speeds(tiny_pruned("llama"), sieve.Recipe("somewhere", "geography"), 1000, None) is None
    assert measured == []


def test_a_dense_model_that_has_gone_loses_no_run(measured, monkeypatch):
    def gone(*given):
        raise OSError("the folder has gone")

    monkeypatch.setattr(speeds, "free_memory", lambda device: 1 << 40)
    monkeypatch.setattr(speeds, "load_model", gone)
    pruned = tiny_pruned("llama")
    found = speeds.compare_speeds(pruned, sieve.Recipe("somewhere", "geography"), 1000, BEFORE)["seconds"]
    assert measured == [(pruned,)]
    assert found["dense"] == BEFORE
