"""Rows without answers teach too: those that are in no split, once each, and never to judge by."""

import json

import pytest

from sieve.errors import InputError
from sieve.healing import unlabelled
from sieve.healing.heal import heal, lessons_of
from sieve.healing.pace import ROWS as OF_A_STEP
from sieve.healing.unlabelled import unlabelled_examples
from sieve.tasks import Task
from tests.sieve.healing.test_healing import ROWS, TOKENIZER, task_of
from tests.sieve.run.test_heal import near, options, own_cache, pruned, run  # noqa: F401 (fixtures)
from tests.tiny_models import tiny_model, tiny_pruned

NEW = [{"q": f"Place {number}:", "options": [" few", " fog"]} for number in range(9)]


@pytest.fixture
def notes(monkeypatch) -> list[str]:
    found: list[str] = []
    monkeypatch.setattr(unlabelled.progress, "note", found.append)
    return found


def written(folder, rows) -> str:
    path = folder / "more.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def read(task, folder, rows, seed=0):
    return unlabelled_examples(task, written(folder, rows), task.splits(seed), seed)


def test_rows_of_splits_and_repetitions_are_left_out(tmp_path, notes):
    """A question of a split is one with other choices, too."""
    task = task_of()
    taken = [{"q": ROWS[3]["q"].upper(), "options": [" many", " none"]}, ROWS[50]]
    found = read(task, tmp_path, [*NEW, *taken, NEW[0]])
    assert [one.prompt for one in found] == [f"Q: {row['q']}" for row in NEW]
    assert found[0].choices == (" few", " fog")
    assert notes == [
        f"healing: 9 of the 12 rows of {tmp_path}/more.jsonl are used: the others are in a split, or twice in the file"
    ]
    assert read(task, tmp_path, taken) == []
    assert "no row of" in notes[-1]
    assert read(task, tmp_path, []) == []
    assert "holds no rows" in notes[-1]
    assert unlabelled_examples(task, None, {}, 0) == []


def test_no_more_than_can_be_used_are_read(tmp_path, notes, monkeypatch):
    monkeypatch.setattr(unlabelled, "MOST", 4)
    assert len(read(task_of(), tmp_path, NEW)) == 4
    assert "the first 4 were read" in notes[-1]


def test_they_look_as_the_tasks_own_rows_do(tmp_path, notes):
    """Solved examples stand before them; a text is a text."""
    task = task_of(shots=2)
    (found,) = read(task, tmp_path, NEW[:1])
    own = task.splits()["calibration"][0]
    shots = own.prompt[: own.prompt.rindex("Q: ")]
    assert shots
    assert found.prompt == f"{shots}Q: {NEW[0]['q']}"
    (text,) = read(task_of("perplexity"), tmp_path, NEW[:1])
    assert (text.prompt, text.target) == ("", NEW[0]["q"])


@pytest.mark.parametrize("kind", ["multiple_choice", "generation", "perplexity"])
def test_the_held_back_rows_are_those_of_the_calibration_split(kind, tmp_path, notes):
    task, dense = task_of(kind), tiny_model("llama")
    rows = task.splits()["calibration"]
    more = read(task, tmp_path, NEW)
    alone, both = (lessons_of(dense, TOKENIZER, task, rows, 50, unlabelled=some) for some in ((), more))
    assert len(both.training) == len(alone.training) + len(NEW)
    assert [one.question for one in both.training[: len(alone.training)]] == [one.question for one in alone.training]
    assert [one.question for one in both.held_back] == [one.question for one in alone.held_back]
    if kind == "multiple_choice":
        assert len(both.answers) == len(both.taught) == len(both.training) + len(both.held_back)
    # What the steps cannot read is not asked of the teacher.
    assert len(lessons_of(dense, TOKENIZER, task, rows, 1, unlabelled=more).training) == OF_A_STEP


def test_healing_goes_on_from_its_checkpoint(tmp_path, notes):
    task, file = task_of(), written(tmp_path, NEW)
    given = {"steps": 3, "checkpoint": tmp_path / "kept", "unlabelled": file}
    first = heal(tiny_pruned("llama"), TOKENIZER, task, tiny_model("llama"), **given)
    again = heal(tiny_pruned("llama"), TOKENIZER, task, tiny_model("llama"), **given)
    assert again.course == first.course
    assert first.training == len(task.splits()["calibration"]) - first.held_back + len(NEW)


def test_bad_input(tmp_path, notes):
    model, dense = tiny_pruned("llama"), tiny_model("llama")
    with pytest.raises(InputError, match=r"--unlabelled .*more\.jsonl: .*unknown field 'options'; the data has q$"):
        heal(model, TOKENIZER, task_of(), dense, unlabelled=written(tmp_path, [{"q": "x"}]))
    with pytest.raises(InputError, match=r"cannot read .*none\.jsonl"):
        heal(model, TOKENIZER, task_of(), dense, unlabelled=tmp_path / "none.jsonl")
    with pytest.raises(InputError, match="without labels: add --heal label-free"):
        heal(model, TOKENIZER, task_of(), kind="tuned", unlabelled=written(tmp_path, NEW))
    answers = Task("t", "perplexity", ROWS, "{q}", answer="w")
    with pytest.raises(InputError, match="rows without answers teach nothing: leave --unlabelled out"):
        heal(model, TOKENIZER, answers, dense, unlabelled=written(tmp_path, NEW))


def test_pruned_with_them_in_one_go_and_afterwards(run, world, near, tmp_path):  # noqa: F811
    """One model either way, and the recipe says which file."""
    file = written(tmp_path, [{"number": 1000 + number, "animal": "emu"} for number in range(20)])
    more = ("--unlabelled", file, "--heal-steps", 10)
    report = pruned(run, world, near, tmp_path / "healed", "--heal", *more)
    pruned(run, world, near, tmp_path / "pruned")
    code, out, err = run("heal", tmp_path / "pruned", "--output", tmp_path / "later", *more, "--json")
    assert code == 0, err
    later = json.loads(out)
    assert later["healing"]["rows"] == report["healing"]["rows"]
    assert later["loglik"] == report["loglik"]
    for folder in ("healed", "later"):
        assert f"unlabelled: {file}" in (tmp_path / folder / "recipe.yaml").read_text()
    code, _, err = run(*options(world, tmp_path / "no"), "--heal", "tuned", "--unlabelled", file)
    assert code == 2
    assert "leave --unlabelled out" in err
