"""Healing: the loss is what it says, the model is never left worse, and what is stored is what was judged."""

import copy
import importlib
import math
from dataclasses import replace

import pytest
import torch

import sieve
from sieve.errors import InputError
from sieve.evaluation.scoring import evaluate
from sieve.healing import loop, rows, teacher
from sieve.healing.forward import packs, predict
from sieve.healing.heal import heal, heal_, lessons_of
from sieve.healing.loop import Setting, held_back_distance, state_of
from sieve.healing.loss import _token_divergence, distance
from sieve.healing.masters import Masters, trained_parameters
from sieve.models.decoder import decoder_blocks
from sieve.models.loading import evaluating
from sieve.tasks import Task
from tests.sieve.models.test_halving import small_memory, small_memory_backward
from tests.tiny_models import tiny_model, tiny_pruned, tiny_tokenizer

ROWS = [
    {"q": f"Word {i}:",
     "options": [f" few{i % 3}", f" fog{i % 7}", f" fat{i % 5}"], "a": i % 3, "w": ["few", "many"][i % 2],
     "land": i // 5} for i in range(120)
]  # fmt: skip
TOKENIZER = tiny_tokenizer()
TOO_FAST = (Setting(1, 0.1, 100.0), Setting(0, 1, 50.0))
# Its name in the package is the function's.
heal_module = importlib.import_module("sieve.healing.heal")


def task_of(kind="multiple_choice", rows=ROWS, **changes):
    keys = {
        "multiple_choice": {"choices": "options", "answer": "a"},
        "generation": {"answer": "w", "max_new_tokens": 4},
        "perplexity": {},
    }[kind]
    return Task("t", kind, rows, "Q: {q}" if kind == "multiple_choice" else "{q}", **(keys | changes))


def lessons(kind="multiple_choice", model="llama", dtype=torch.float32, count=64, **changes):
    task = task_of(kind, **changes)
    return lessons_of(tiny_model(model, dtype=dtype), TOKENIZER, task, task.splits()["calibration"], 4)


def plain_loss(student, dense, task, examples, tokens):
    """Question by question and choice by choice, each sequence alone, over the whole vocabulary."""

    def values(model, prompt, choice):
        ids = TOKENIZER(prompt + choice)["input_ids"]
        start = len(TOKENIZER(prompt)["input_ids"])
        logprobs = model(torch.tensor([ids])).logits[0].log_softmax(-1)[start - 1 : -1]
        return logprobs, logprobs.gather(1, torch.tensor(ids[start:])[:, None]).sum()

    choices, per_token = [], []
    for one in examples:
        judged = []
        for model in (dense, student):
            found = []
            for choice in one.choices:
                _, loglik = values(model, one.prompt, choice)
                if task.normalize == "prior":
                    loglik = loglik - values(model, one.neutral, choice)[1]
                if task.normalize == "length":
                    lengths = [len(text.strip()) for text in one.choices]
                    loglik = loglik * (sum(lengths) / len(lengths)) / len(choice.strip())
                found.append(loglik)
            judged.append(torch.stack(found).log_softmax(0))
        p, q = judged[0].detach(), judged[1]
        choices.append((p.exp() * (p - q)).sum())
        for choice in one.choices:
            p, q = values(dense, one.prompt, choice)[0].detach(), values(student, one.prompt, choice)[0]
            per_token += [*(p.exp() * (p - q)).sum(1)]
    return torch.stack(choices).mean() + tokens * torch.stack(per_token).mean()


@pytest.mark.parametrize("pivoted", [False, True])
@pytest.mark.parametrize("normalize", ["none", "length", "prior"])
def test_gradient_of_the_packed_loss_is_that_of_the_plain_one(normalize, pivoted, monkeypatch):
    task = task_of(normalize=normalize)
    examples = task.splits()["calibration"][:6]
    dense = tiny_model("llama", dtype=torch.float64)
    student = tiny_pruned("llama", seed=1, dtype=torch.float64, pivoted=pivoted)
    taught = lessons_of(dense, TOKENIZER, task, task.splits()["calibration"], 4).training[:6]
    questions = [lesson.question for lesson in taught]
    with evaluating(student):
        assert packs(student, questions)
    monkeypatch.setattr(rows, "TARGETS", 20)  # several passes
    got = {}
    with evaluating(student):
        asked, targets = loop._totals(taught)
        loss = loop._over_passes(
            student, taught, True, lambda one: one.choices / asked + 0.3 * one.tokens / targets, "healing"
        )
        parameters = trained_parameters(student)
        got = torch.autograd.grad(loss, parameters.values())
    want_loss = plain_loss(student, dense, task, examples, 0.3)
    want = torch.autograd.grad(want_loss, parameters.values())
    assert float(loss.detach()) == pytest.approx(float(want_loss.detach()), rel=1e-6)
    for name, one, other in zip(parameters, got, want, strict=True):
        assert float((one - other).norm() / other.norm()) < 1e-6, name


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "gpt_neox", "gemma", "qwen3"])
def test_packed_rows_and_rows_of_one_choice_say_the_same(name):
    taught = lessons(model=name).training[:8]
    model = tiny_model(name)
    questions = [lesson.question for lesson in taught]
    alone, packed = (predict(model, questions, together) for together in (False, True))
    assert torch.allclose(alone.logprobs, packed.logprobs, atol=1e-4)
    assert packs(model, questions)


def test_a_model_that_takes_no_masks_is_healed_row_by_row():
    taught = lessons().training[:8]
    questions = [lesson.question for lesson in taught]
    model = tiny_model("llama")
    forward = model.forward

    def without(*args, attention_mask=None, position_ids=None, **kwargs):
        return forward(*args, **kwargs)

    model.forward = without
    assert not packs(model, questions)


def test_passes_make_no_difference(monkeypatch):
    taught = lessons()
    student = tiny_pruned("llama")
    before = held_back_distance(student, taught.held_back, True)
    monkeypatch.setattr(rows, "CELLS", 40)
    assert len(list(rows.in_passes([one.question for one in taught.held_back]))) > 3
    assert held_back_distance(student, taught.held_back, True) == pytest.approx(before, rel=1e-5)


def test_divergence_of_the_likeliest_tokens_and_all_others_as_one():
    torch.manual_seed(0)
    wanted, found = (torch.randn(5, 40, dtype=torch.float64).log_softmax(1) for _ in range(2))
    logprobs, top = wanted.topk(6)
    got = _token_divergence(found.gather(1, top), logprobs, others=True)
    for row in range(5):
        p, q = ([*one[row, top[row]].exp(), 1 - one[row, top[row]].exp().sum()] for one in (wanted, found))
        assert float(got[row]) == pytest.approx(sum(float(a * (a / b).log()) for a, b in zip(p, q, strict=True)))
    exact = torch.nn.functional.kl_div(found, wanted, log_target=True, reduction="none").sum(1)
    assert torch.allclose(_token_divergence(found, wanted, others=False), exact)
    assert bool((got <= exact + 1e-12).all())


def test_nothing_separates_a_model_from_itself():
    taught = lessons()
    model = tiny_model("llama")
    assert held_back_distance(model, taught.held_back, True) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("kind", ["multiple_choice", "generation", "perplexity"])
@pytest.mark.parametrize("pruned", ["plain", "pivoted", "shared"])
def test_a_healed_model_is_nearer_to_its_teacher_and_is_stored_as_it_was_judged(kind, pruned, tmp_path):
    task, dense = task_of(kind), tiny_model("llama")
    if pruned == "shared":
        student = sieve.share_inputs_(tiny_model("llama"))
        statistics = sieve.calibrate(student, TOKENIZER, task_of("perplexity"), tokens=300)
        factors = sieve.project(student, statistics)
        student = sieve.apply_(student, factors, dict.fromkeys(factors, 8))
    else:
        student = tiny_pruned("llama", pivoted=pruned == "pivoted")
    table = student.get_input_embeddings().weight.detach().clone()
    frozen = {name: one.requires_grad for name, one in student.named_parameters()}
    healing = heal(student, TOKENIZER, task, dense, steps=10)
    assert healing.after < healing.before
    assert healing.course.best > 0
    assert torch.equal(student.get_input_embeddings().weight, table)
    assert {name: one.requires_grad for name, one in student.named_parameters()} == frozen
    assert all(one.grad is None for one in student.parameters())
    assert not student.training
    taught = lessons_of(dense, TOKENIZER, task, task.splits()["calibration"], 10)
    assert held_back_distance(student, taught.held_back, True) == pytest.approx(healing.after, rel=1e-5)
    sieve.save(student, TOKENIZER, tmp_path / "healed")
    loaded, _ = sieve.load(tmp_path / "healed", device="cpu")
    for name, one in student.state_dict().items():
        assert torch.equal(one, loaded.state_dict()[name]), name
    test = task.splits()["test"]
    assert (evaluate(loaded, TOKENIZER, task, test).loglik == evaluate(student, TOKENIZER, task, test).loglik).all()


def test_bfloat16_moves_by_masters_in_float32():
    """Steps of 1e-5 on a norm of 1 are lost in bfloat16, unless they are summed."""
    model = tiny_model("llama", dtype=torch.bfloat16)
    norm = trained_parameters(model)["model.norm.weight"]
    norm.data.fill_(1)
    before = norm.detach().clone()
    with Masters(model, 1e-4, 200) as masters:
        for step in range(1, 151):
            masters.backward(norm.float().sum())
            assert masters.step()
            if step == 1:
                assert torch.equal(norm.detach(), before)
    assert bool((norm.detach() < before).all())


def healer(student, setting, steps=6, looks=(2, 4, 6)):
    """A healer that has taken its steps, and what the model was."""
    taught, start = lessons(), copy.deepcopy(state_of(student))
    before = held_back_distance(student, taught.held_back, True)
    made = loop.Healer(student, taught, setting, steps, 16, 0, before, True)
    for look in looks:
        made.go_on(look, lambda n: None)
    return made, start


@pytest.mark.parametrize("setting", [Setting(-1, -0.1, 1e-3), Setting(1, 0.1, math.inf)])  # away from it; no number
def test_steps_that_ruin_the_model_leave_it_as_it_was(setting):
    student = tiny_pruned("llama")
    made, start = healer(student, setting)
    assert made.course.best == 0
    assert made.course.after == made.course.curve[0][1]
    assert made.course.diverged == math.isinf(setting.rate)
    made.finish(start)
    assert all(torch.equal(one, start[name]) for name, one in state_of(student).items())


def test_it_ends_at_the_best_look_not_at_the_last(monkeypatch):
    student = tiny_pruned("llama")
    values = iter([4.0, 3.0, 1.0, 2.0])
    states = []

    def judged(model, held_back, together):
        states.append(copy.deepcopy(state_of(model)))
        return next(values)

    monkeypatch.setattr(loop, "held_back_distance", judged)
    monkeypatch.setitem(globals(), "held_back_distance", judged)
    made, start = healer(student, Setting(1, 0.1, 1e-3))
    assert made.course.curve == [(0, 4.0), (2, 3.0), (4, 1.0), (6, 2.0)]
    assert (made.course.best, made.course.after) == (4, 1.0)
    made.finish(start)
    assert all(torch.equal(one, states[2][name]) for name, one in state_of(student).items())


def test_taking_turns_changes_no_healing():
    """Two healings on one model, one after the other and in turns: the same weights."""
    settings = [Setting(1, 0.1, 1e-3), Setting(0, 1, 5e-4)]
    alone = []
    for setting in settings:
        student = tiny_pruned("llama")
        made, start = healer(student, setting)
        made.finish(start)
        alone.append(state_of(student))
    student, taught = tiny_pruned("llama"), lessons()
    start = state_of(student)
    before = held_back_distance(student, taught.held_back, True)
    both = [loop.Healer(student, taught, setting, 6, 16, 0, before, True) for setting in settings]
    for look in (2, 4, 6):
        for made in both:
            made.go_on(look, lambda n: None)
    for made, want in zip(both, alone, strict=True):
        made.finish(start)
        assert all(torch.equal(one, want[name]) for name, one in state_of(student).items())


def test_settings_that_fall_behind_are_given_up_and_near_ones_go_on(monkeypatch):
    settings = (Setting(1, 0.1, 2e-3), Setting(1, 0.1, 2.001e-3), Setting(1, 0.1, 1e-9), Setting(-1, -0.1, 2e-3))
    monkeypatch.setattr(heal_module, "OF_CHOICES", settings)
    healing = heal_(tiny_pruned("llama"), lessons(), steps=10)
    courses = [healing.course, *healing.tries]
    taken = {one.setting: one.curve[-1][0] for one in courses}
    assert sorted(taken[one] for one in settings[:2]) == [6, 10]  # after three looks the nearest goes on alone
    assert taken[settings[2]] < 10
    assert taken[settings[3]] == 2
    assert taken[healing.course.setting] == 10
    assert healing.after == min(one.after for one in courses) < healing.before
    report = healing.report()
    assert report["held_back"]["curve"][0] == [0, healing.before]
    assert len(report["tries"]) == 3
    assert len(report["losses"]) == 10


def test_where_no_setting_helps_the_nearest_is_tried_with_smaller_steps(monkeypatch):
    monkeypatch.setattr(heal_module, "OF_CHOICES", TOO_FAST)
    student = tiny_pruned("llama")
    start = state_of(student)
    healing = heal_(student, lessons(), steps=10)
    asked = [one for one in (healing.course, *healing.tries) if one.setting in TOO_FAST]
    first = min(asked, key=lambda one: one.curve[-1][1])
    slower = replace(first.setting, rate=0.2 * first.setting.rate)
    assert {one.setting for one in (healing.course, *healing.tries)} == {*TOO_FAST, slower}
    assert healing.course.best == 0
    assert all(torch.equal(one, start[name]) for name, one in state_of(student).items())
    monkeypatch.setattr(heal_module, "_SLOWER", 2e-5)
    # It begins with the model as it was, so that it is what it would be alone.
    healing = heal_(student, lessons(), steps=10)
    assert healing.after < healing.before
    alone = tiny_pruned("llama")
    monkeypatch.setattr(heal_module, "OF_CHOICES", (replace(first.setting, rate=2e-5 * first.setting.rate),))
    want = heal_(alone, lessons(), steps=10)
    assert healing.course == want.course
    assert all(torch.equal(one, state_of(alone)[name]) for name, one in state_of(student).items())


def test_no_label_is_read():
    """Whatever the answers are, the lessons are the same."""
    task = task_of()
    examples = task.splits()["calibration"]
    elastic = [copy.copy(one) for one in examples]
    for one in elastic:
        object.__setattr__(one, "answer", (one.answer + 1) % 3)
    found = [lessons_of(tiny_model("llama"), TOKENIZER, task, part, 4) for part in (examples, elastic)]
    for one, other in zip(found[0].training, found[1].training, strict=True):
        assert one.question == other.question
        assert torch.equal(one.judged, other.judged)


def test_rows_of_one_group_are_not_on_both_sides():
    task = task_of(rows=[{**row, "q": f"{row['q']} {row['land']}"} for row in ROWS], group="land")
    examples = task.splits()["calibration"]
    taught = lessons_of(tiny_model("llama"), TOKENIZER, task, examples, 50)
    border = len(taught.training)
    assert len(taught.held_back) >= 8
    assert not {one.group for one in examples[:border]} & {one.group for one in examples[border:]}


def test_too_few_rows_are_refused_with_their_number():
    task = task_of(rows=ROWS[:60])
    with pytest.raises(InputError, match=f"at least {teacher.FEWEST} calibration rows.*there are 24"):
        heal(tiny_pruned("llama"), TOKENIZER, task, tiny_model("llama"))


@pytest.mark.parametrize("steps", [0, -1, 1.5, True])
def test_steps_that_are_none(steps):
    with pytest.raises(InputError, match="steps of healing must be a whole number"):
        heal(tiny_pruned("llama"), TOKENIZER, task_of(), tiny_model("llama"), steps=steps)


def test_a_teacher_with_another_vocabulary_is_refused():
    other = tiny_model("llama")
    other.resize_token_embeddings(100)
    with pytest.raises(InputError, match="another vocabulary"):
        heal(tiny_pruned("llama"), TOKENIZER, task_of(), other)


def test_rows_without_a_target_are_left_out_and_counted():
    model = tiny_model("llama")
    task = task_of("perplexity")
    examples = task.splits()["calibration"]
    empty = copy.copy(examples[0])
    object.__setattr__(empty, "references", ("",))
    taught = lessons_of(model, TOKENIZER, task, [empty, *examples[1:]], 4)
    assert taught.skipped == 1
    assert len(taught.training) + len(taught.held_back) == len(examples) - 1


def test_zeros_of_a_masked_model_stay_zeros(tmp_path):
    model = tiny_model("llama")
    statistics = sieve.calibrate(model, TOKENIZER, task_of("perplexity"), tokens=300, method="wanda")
    masks = sieve.mask(model, statistics, "wanda")
    student = sieve.apply_(model, masks, {name: matrix.n // 2 for name, matrix in masks.matrices(model).items()})
    zeros = {name: one == 0 for name, one in student.named_parameters()}
    assert any(bool(one.any()) for one in zeros.values())
    healing = heal(student, TOKENIZER, task_of(), tiny_model("llama"), steps=6)
    assert healing.after < healing.before
    for name, one in student.named_parameters():
        if name.endswith("_proj.weight"):
            assert torch.equal(one == 0, zeros[name]), name
    sieve.save(student, TOKENIZER, tmp_path / "masked")


def test_distance_of_texts_has_no_choices():
    taught = lessons("generation")
    one = distance(predict(tiny_pruned("llama"), [taught.training[0].question], True), taught.training[:1])
    assert float(one.choices) == 0
    assert float(one.tokens.detach()) > 0
    assert taught.answers == []


@pytest.mark.parametrize("kind", ["multiple_choice", "perplexity"])
@pytest.mark.parametrize("memory", [small_memory, small_memory_backward])
def test_too_little_memory(kind, memory):
    """Lessons, looks and steps in halves: the same healing up to rounding."""
    found = []
    for cells in (1 << 30, 100):
        teacher, student = tiny_model("llama"), tiny_pruned("llama")
        with memory(decoder_blocks(teacher)[1][1], cells) as one, memory(decoder_blocks(student)[1][0], cells) as two:
            task = task_of(kind)
            taught = lessons_of(teacher, TOKENIZER, task, task.splits()["calibration"], 2)
            healing = heal_(student, taught, 2)
        found.append((taught, healing, state_of(student)))
    assert two
    assert one or memory is small_memory_backward
    (taught, healing, state), (again, after, moved) = found
    for before, lesson in zip(taught.training, again.training, strict=True):
        assert before.question == lesson.question
        assert torch.allclose(before.judged, lesson.judged, atol=1e-4)
    assert after.before == pytest.approx(healing.before, rel=1e-4)
    assert after.after == pytest.approx(healing.after, rel=1e-3)
    for name, value in state.items():
        assert torch.allclose(value, moved[name], rtol=0, atol=1e-3), name
