"""Healing on labels and by adapters: what it learns, what it leaves alone, and what it refuses."""

import pytest
import torch

import sieve
from sieve.errors import InputError
from sieve.healing.heal import heal, lessons_of
from sieve.healing.loop import held_back_distance
from tests.sieve.healing.test_healing import TOKENIZER, task_of
from tests.tiny_models import tiny_model, tiny_pruned


@pytest.mark.parametrize("kind", ["multiple_choice", "generation", "perplexity"])
def test_tuning_raises_the_likelihood_of_the_labels(kind):
    task = task_of(kind)
    student = tiny_pruned("llama")
    examples = task.splits()["calibration"]
    healing = heal(student, TOKENIZER, task, steps=10, kind="tuned")
    assert healing.report()["kind"] == "tuned"
    assert healing.after < healing.before
    taught = lessons_of(student, TOKENIZER, task, examples, 10, "tuned")
    assert taught.answers == []
    held = examples[-len(taught.held_back) :]
    if kind == "multiple_choice":
        want = []
        for one in held:
            logliks = []
            for choice in one.choices:
                ids, start = TOKENIZER(one.prompt + choice)["input_ids"], len(TOKENIZER(one.prompt)["input_ids"])
                found = student(torch.tensor([ids])).logits[0].log_softmax(-1)[start - 1 : -1]
                logliks.append(found.gather(1, torch.tensor(ids[start:])[:, None]).sum())
            want.append(-torch.stack(logliks).log_softmax(0)[one.answer])
        assert healing.after == pytest.approx(float(torch.stack(want).mean().detach()), rel=1e-4)
        # Tokens of wrong choices are not learned.
        for lesson, one in zip(taught.held_back, held, strict=True):
            assert int(lesson.counts.sum()) == len(lesson.question.endings[one.answer])


@pytest.mark.parametrize("pivoted", [False, True])
def test_adapters_are_merged_at_the_same_rank(pivoted):
    student = tiny_pruned("llama", pivoted=pivoted)
    before = {name: one.detach().clone() for name, one in student.named_parameters()}
    healing = heal(student, TOKENIZER, task_of(), tiny_model("llama"), steps=10, kind="lora")
    assert healing.report()["kind"] == "lora"
    assert healing.after < healing.before
    after = dict(student.named_parameters())
    assert {name: one.shape for name, one in after.items()} == {name: one.shape for name, one in before.items()}
    changed = {name for name, one in after.items() if not torch.equal(one, before[name])}
    assert changed
    assert all("_proj" in name for name in changed)
    assert not hasattr(student, "peft_config")
    taught = lessons_of(tiny_model("llama"), TOKENIZER, task_of(), task_of().splits()["calibration"], 10)
    assert held_back_distance(student, taught.held_back, True) == pytest.approx(healing.after, rel=1e-5)


def test_adapters_that_cannot_be_are_refused():
    model = tiny_model("llama")
    statistics = sieve.calibrate(model, TOKENIZER, task_of("perplexity"), tokens=300, method="wanda")
    masks = sieve.mask(model, statistics, "wanda")
    student = sieve.apply_(model, masks, {name: matrix.n // 2 for name, matrix in masks.matrices(model).items()})
    with pytest.raises(InputError, match="zeros of masks"):
        heal(student, TOKENIZER, task_of(), tiny_model("llama"), kind="lora")
    with pytest.raises(InputError, match="one of label-free, tuned, lora"):
        heal(tiny_pruned("llama"), TOKENIZER, task_of(), tiny_model("llama"), kind="glued")
    with pytest.raises(InputError, match="no teacher given"):
        heal(tiny_pruned("llama"), TOKENIZER, task_of())
