"""Healing that was interrupted goes on to the same bits; a checkpoint of something else is left alone."""

import pytest
import torch

from sieve.healing import loop
from sieve.healing.heal import heal
from tests.sieve.healing.test_healing import TOKENIZER, TOO_FAST, heal_module, task_of
from tests.tiny_models import tiny_model, tiny_pruned


class Killed(BaseException):
    """As an interrupt is, no error."""


@pytest.mark.parametrize(("kind", "after"), [("label-free", 1), ("label-free", 11), ("tuned", 7), ("lora", 9)])
def test_an_interrupted_healing_goes_on_to_the_same_bits(kind, after, tmp_path, monkeypatch):
    goes_on_to_the_same_bits(kind, after, tmp_path, monkeypatch)


def test_an_interrupted_second_try_goes_on_to_the_same_bits(tmp_path, monkeypatch):
    monkeypatch.setattr(heal_module, "OF_CHOICES", TOO_FAST)
    monkeypatch.setattr(heal_module, "_SLOWER", 2e-5)
    goes_on_to_the_same_bits("label-free", 13, tmp_path, monkeypatch)
    assert (tmp_path / "kept" / "setting-2.safetensors").exists()


def goes_on_to_the_same_bits(kind, after, tmp_path, monkeypatch):
    task, dense = task_of(), tiny_model("llama")
    whole = tiny_pruned("llama")
    want = heal(whole, TOKENIZER, task, dense, steps=10, kind=kind)
    taken = []
    step = loop._step

    def killed(*args):
        taken.append(1)
        if len(taken) > after:
            raise Killed
        return step(*args)

    monkeypatch.setattr("sieve.healing.checkpoint.SECONDS", 0.0)
    monkeypatch.setattr(loop, "_step", killed)
    with pytest.raises(Killed):
        heal(tiny_pruned("llama"), TOKENIZER, task, dense, steps=10, kind=kind, checkpoint=tmp_path / "kept")
    assert {path.name for path in (tmp_path / "kept").iterdir()} >= {"lessons.safetensors", "setting-0.safetensors"}
    monkeypatch.setattr(loop, "_step", lambda *args: taken.append(2) or step(*args))
    monkeypatch.setattr("sieve.healing.heal.teach", None)  # the teacher is asked once
    monkeypatch.setattr("sieve.healing.heal.label_lessons", None)
    student = tiny_pruned("llama")
    got = heal(student, TOKENIZER, task, dense, steps=10, kind=kind, checkpoint=tmp_path / "kept")
    assert got.course == want.course
    assert got.tries == want.tries
    assert taken.count(2) == sum(one.curve[-1][0] for one in (want.course, *want.tries)) - after
    for name, one in whole.named_parameters():
        assert torch.equal(one, dict(student.named_parameters())[name]), name


def test_a_checkpoint_of_something_else_is_not_gone_on_with(tmp_path, monkeypatch):
    monkeypatch.setattr("sieve.healing.checkpoint.SECONDS", 0.0)
    task, dense = task_of(), tiny_model("llama")
    heal(tiny_pruned("llama"), TOKENIZER, task, dense, steps=4, checkpoint=tmp_path)
    want, got = tiny_pruned("llama"), tiny_pruned("llama")
    heal(want, TOKENIZER, task, dense, steps=5)
    heal(got, TOKENIZER, task, dense, steps=5, checkpoint=tmp_path)
    assert all(torch.equal(one, got.state_dict()[name]) for name, one in want.state_dict().items())
    for path in tmp_path.iterdir():
        path.write_bytes(path.read_bytes()[:50])  # damaged: as if it were not there
    got = tiny_pruned("llama")
    heal(got, TOKENIZER, task, dense, steps=5, checkpoint=tmp_path)
    assert all(torch.equal(one, got.state_dict()[name]) for name, one in want.state_dict().items())
