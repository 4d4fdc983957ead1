"""Speed of a model: what is run and counted, not how long it takes."""

import pytest
import torch
from torch import nn

from sieve.compression.low_rank.pair import FactorPair
from sieve.evaluation import speed
from sieve.evaluation.speed import PROMPT, measure_speed, measure_speeds, speed_report
from tests.tiny_models import tiny_model, tiny_pruned


@pytest.mark.parametrize("kind", ["llama", "gpt2", "opt"])
def test_a_prompt_at_once_and_then_token_by_token(kind, monkeypatch):
    model = tiny_pruned(kind).train()
    lengths = []
    model.get_input_embeddings().register_forward_hook(lambda layer, given, out: lengths.append(given[0].shape[1]))
    # Each look at the clock takes a second.
    clock = iter(range(100))
    monkeypatch.setattr(speed, "_now", lambda model: float(next(clock)))
    found = measure_speed(model)
    assert found == {"prefill": 1 / PROMPT, "decode": 1 / speed.NEW}
    assert lengths[: speed.NEW + 1] == [PROMPT] + speed.NEW * [1]
    assert len(lengths) >= 2 * (speed.NEW + 1)
    assert model.training


def test_models_take_turns_and_medians_are_each_ones_own(monkeypatch):
    dense, pruned = tiny_model("llama"), tiny_pruned("llama")
    order = []

    def one_round(model, prompt):
        order.append("dense" if model is dense else "pruned")
        return {"prefill": 1.0, "decode": float(len(order))}

    monkeypatch.setattr(speed, "_ROUNDS", 3)
    monkeypatch.setattr(speed, "_round", one_round)
    found = measure_speeds(dense, pruned)
    assert order == ["dense", "pruned"] * (1 + speed._ROUNDS)
    assert [one["decode"] for one in found] == [5.0, 6.0]


def test_it_ends_after_some_seconds_and_fits_short_contexts(monkeypatch):
    model = tiny_model("llama")
    model.config.max_position_embeddings = 20
    taken = []
    monkeypatch.setattr(speed, "_SECONDS", 0.0)
    monkeypatch.setattr(
        speed, "_round", lambda model, prompt: taken.append(prompt.shape[1]) or {"prefill": 1.0, "decode": 1.0}
    )
    measure_speed(model)
    assert taken == [20 - speed.NEW] * 2


def test_a_model_that_does_not_decode_so_is_no_end_of_a_run(monkeypatch):
    notes = []
    monkeypatch.setattr(speed.progress, "note", notes.append)
    model = tiny_model("llama")
    monkeypatch.setattr(model.model, "forward", lambda *args, **options: 1 / 0)
    assert measure_speed(model) is None
    assert notes == ["no speed is measured: ZeroDivisionError: division by zero"]
    assert speed_report(model, None, {"prefill": 1.0, "decode": 1.0}) is None
    both = speed_report(model, {"prefill": 2.0, "decode": 1.0}, {"prefill": 1.0, "decode": 1.0})
    assert both["dtype"] == "float32"
    assert f"{torch.get_num_threads()} threads" in both["machine"]


@pytest.mark.parametrize(
    ("energy", "ranks"), [([90.0, 9.0, 0.9, 0.1], (1, 2)), ([1.0] * 10, (9, 10)), ([0.0, 0.0], (0, 0)), ([5.0], (1, 1))]
)
def test_ranks_that_hold_the_energy(energy, ranks):
    pair = FactorPair(nn.Parameter(torch.empty(1, 1)), torch.empty(1, 1), torch.tensor(energy, dtype=torch.float64))
    assert (pair.rank_holding(0.9), pair.rank_holding(0.99)) == ranks
    for share, rank in zip((0.9, 0.99), ranks, strict=True):
        assert pair.lost(rank) <= 1 - share + 1e-9
