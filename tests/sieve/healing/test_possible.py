"""`--heal auto`: healing where rows and memory allow it."""

import pytest

import sieve
from sieve.errors import InputError
from sieve.healing import possible
from sieve.healing.config import HealingConfig
from sieve.healing.heal import settings_for
from sieve.healing.masters import Masters
from sieve.healing.possible import possible_healing
from tests.sieve.healing.test_healing import lessons, task_of
from tests.tiny_models import tiny_model

ROUNDS = HealingConfig(heal="auto", rounds=3, heal_steps=7)


def found(healing, rows=64):
    task = task_of()
    return possible_healing(healing, tiny_model("llama"), task, task.splits()["calibration"][:rows])


def test_auto_is_label_free_where_it_can_be():
    assert found(ROUNDS) == HealingConfig(heal="label-free", rounds=3, heal_steps=7)


def test_auto_is_no_healing_with_few_rows():
    assert found(ROUNDS, rows=8) == HealingConfig()
    with pytest.raises(InputError, match="at least 32 calibration rows"):
        found(HealingConfig(heal="label-free"), rows=8)


def test_auto_is_no_healing_without_memory(monkeypatch):
    monkeypatch.setattr(possible, "free_memory", lambda device: 1000)
    assert found(ROUNDS) == HealingConfig()
    assert found(HealingConfig(heal=True)) == HealingConfig(heal="label-free")
    # What the user allows counts, also where less is free.
    task = task_of()
    given = tiny_model("llama"), task, task.splits()["calibration"]
    assert possible_healing(ROUNDS, *given, allowed=1 << 30).kind == "label-free"
    assert possible_healing(ROUNDS, *given, allowed=1000) == HealingConfig()


@pytest.mark.parametrize("healing", [HealingConfig(), HealingConfig(heal="none")])
def test_none_stays_none(healing):
    assert found(healing, rows=8).kind is None


def test_the_memory_of_an_optimiser_is_what_is_counted():
    model = tiny_model("llama")
    masters = Masters(model, 1e-4, 2)
    with masters:
        masters.backward(model(**model.dummy_inputs).logits.square().sum())
        masters.step()
    state = masters.state()
    trained = sum(one.numel() for one in possible.trained_parameters(model).values())
    assert sum(one.nbytes for one in state.values() if one.dim()) == 12 * trained


@pytest.mark.parametrize("kind", ["multiple_choice", "perplexity"])
def test_each_setting_has_an_optimiser(kind):
    settings = settings_for(lessons(kind), "label-free")
    assert possible.bytes_of_a_parameter(kind == "multiple_choice") == len(settings) * 14 + 6


def test_names_are_checked():
    for value in ("auto", "none", "lora", True, False):
        assert sieve.Recipe("smollm2", "geography", heal=value).check()
    with pytest.raises(InputError, match=r"heal must be one of .* auto, none, got 'often'"):
        sieve.Recipe("smollm2", "geography", heal="often").check()
    with pytest.raises(InputError, match="--rounds 2 needs --heal"):
        sieve.Recipe("smollm2", "geography", heal="none", rounds=2).check()
