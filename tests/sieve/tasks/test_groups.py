"""Which rows are one question, and which are kept together."""

import json
import random
import re

import pytest

from sieve.errors import InputError
from sieve.tasks import Task, load_task
from sieve.tasks.identity import group_names, question_names, same
from sieve.tasks.row import Row
from sieve.tasks.splits import SPLITS


def task(rows, **changes):
    keys = {"prompt": "{q}", "choices": "options", "answer": "label"} | changes
    return Task("t", "multiple_choice", rows, **keys)


def test_the_prompt_is_the_question_where_choices_are_the_same():
    choices = [["yes", "no"], [" No", "YES"], ["a", "b"]]
    assert question_names(["Is it?", "is  it?", "Or?"], choices) == ["is it?", "is it?", "or?"]


def test_choices_are_of_the_question_where_they_differ():
    one, two, again, other = question_names(
        ["Which?"] * 3 + ["Else?"], [["a", "b"], ["a", "c"], ["b", "a"], ["x", "y"]]
    )
    assert one == again != two
    assert other == "else?"


@pytest.mark.parametrize("prompts", [1, 7, 12])
def test_few_prompts_with_the_content_in_the_choices(prompts):
    rows = [
        {
            "q": f"Which is right? ({i % prompts})",
            "options": [f"good {i}", f"bad {i}"][:: 1 - 2 * (i % 2)],
            "label": i % 2,
        }
        for i in range(600)
    ]
    parts = task(rows).splits()
    assert [len(part) for part in parts.values()] == [240, 120, 120, 120]
    constant = task(rows, prompt="Which is right?").splits()
    assert [len(part) for part in constant.values()] == [240, 120, 120, 120]


def test_the_same_question_with_its_choices_in_another_order_is_in_one_split():
    rows = [{"q": "Which?", "options": [f"good {i}", f"bad {i}"], "label": 0} for i in range(100)]
    rows += [{"q": "which? ", "options": [f"Bad {i}", f"good {i}"], "label": 1} for i in range(100)]
    parts = task(rows).splits()
    questions = [{example.question for example in part} for part in parts.values()]
    assert len(set.union(*questions)) == sum(map(len, questions)) == 100


@pytest.mark.parametrize("prompts", [4, 5, 7, 12])
def test_few_questions_empty_no_split(prompts):
    rows = [{"q": f"Which? ({i % prompts})", "options": ["yes", "no"], "label": i // prompts % 2} for i in range(600)]
    for seed in range(5):
        parts = task(rows).splits(seed)
        assert all(parts.values())
        questions = [{example.question for example in part} for part in parts.values()]
        assert sum(map(len, questions)) <= prompts
        assert len(set.union(*questions)) == sum(map(len, questions))


def grouped(rows, group, seed=0, **changes):
    """Splits as sets of the rows' numbers, which are their prompts."""
    rows = [{"q": str(i), "options": ["yes", "no"], "label": i % 2} | row for i, row in enumerate(rows)]
    parts = task(rows, group=group, **changes).splits(seed)
    return {name: {int(example.prompt) for example in part} for name, part in parts.items()}


def split_of(parts, key):
    """What each key's rows are in."""
    found = {}
    for name, part in parts.items():
        for number in part:
            found.setdefault(key(number), set()).add(name)
    return found


@pytest.mark.parametrize("seed", range(3))
def test_rows_of_a_group_are_in_one_split(seed):
    parts = grouped([{"page": f"Page  {i % 20}" if i % 3 else f"page {i % 20}"} for i in range(200)], "page", seed)
    assert all(len(names) == 1 for names in split_of(parts, lambda i: i % 20).values())
    assert sum(map(len, parts.values())) > 180
    assert all(parts.values())


def test_several_fields_and_lists_join_rows_through_one_another():
    # Rows 3i and 3i + 1 have a person in common, 3i + 1 and 3i + 2 a page.
    rows = [
        {"people": [f"p{i // 3}", f"own {i}"] if i % 3 < 2 else [f"alone {i}"], "page": i // 3 if i % 3 else None}
        for i in range(120)
    ]
    parts = grouped(rows, ["people", "page"])
    assert all(len(names) == 1 for names in split_of(parts, lambda i: i // 3).values())
    assert any(len(names) > 1 for names in split_of(grouped(rows, "people"), lambda i: i // 3).values())


def test_rows_without_a_value_are_not_together():
    empty = [None, "", "  ", float("nan"), []]
    parts = grouped([{"page": empty[i % 5]} for i in range(100)], "page")
    assert [len(part) for part in parts.values()] == [40, 20, 20, 20]


def test_numbers_are_the_same_in_any_form():
    rows = [{"page": [i // 4, float(i // 4), str(i // 4), [i // 4]][i % 4]} for i in range(80)]
    assert all(len(names) == 1 for names in split_of(grouped(rows, "page"), lambda i: i // 4).values())


def test_the_order_of_rows_makes_no_difference():
    rows = [Row({"a": i % 7, "b": i % 11 if i % 2 else None}, str(i)) for i in range(60)]
    questions = [f"q{i}" for i in range(60)]
    names = dict(zip(questions, group_names(rows, questions, ("a", "b")), strict=True))
    mixed = list(zip(rows, questions, strict=True))
    random.Random(0).shuffle(mixed)
    rows, questions = zip(*mixed, strict=True)
    assert names == dict(zip(questions, group_names(rows, questions, ("a", "b")), strict=True))


def test_a_group_of_several_files_counts_in_the_one_tested_last(tmp_path):
    for name, first in (("train", 0), ("test", 90)):
        rows = [{"q": f"q{i}", "label": i % 2, "page": i // 3} for i in range(first, first + 100)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    parts = Task("t", "multiple_choice", tmp_path, "{q}", ["x", "y"], "label", group="page").splits()
    numbers = {name: {int(example.prompt[1:]) // 3 for example in part} for name, part in parts.items()}
    assert min(numbers["test"]) == 30
    assert max(max(numbers[name]) for name in SPLITS[:3]) < 30


def test_generation_and_perplexity_too():
    rows = [{"q": f"q{i}", "a": str(i), "page": i // 10} for i in range(200)]
    for kind, keys in (("generation", {"answer": "a"}), ("perplexity", {})):
        parts = Task("t", kind, rows, "{q}", group="page", **keys).splits()
        groups = [{example.group for example in part} for part in parts.values()]
        assert sum(map(len, groups)) == len(set.union(*groups)) == 20


SIZES = {"calibration": 40, "fitness": 20, "validation": 20, "test": 20}


def test_counts_that_groups_can_fill():
    parts = grouped([{"page": i // 10} for i in range(100)], "page", split_sizes=SIZES)
    assert [len(part) for part in parts.values()] == [40, 20, 20, 20]


def test_counts_that_groups_cannot_fill():
    with pytest.raises(InputError, match="asks for 20 fitness examples, 10 are left: the data has 100 in all, in 4 g"):
        grouped([{"page": i // 30} for i in range(100)], "page", split_sizes=SIZES | {"calibration": 30})


def test_fewer_groups_than_splits():
    with pytest.raises(InputError, match=r"the validation split is empty: .*in 2 groups .* largest of 50"):
        grouped([{"page": i // 50} for i in range(100)], "page")


@pytest.mark.parametrize(
    ("group", "part"),
    [
        ("pgae", "group names an unknown field 'pgae'; the data has q, options, label, page"),
        (["page", "none"], "group names an unknown field 'none'"),
        (3, "group must be the name of a field or a list of them, got 3"),
        ([""], "group must be the name of a field"),
        ([["page"]], "group must be the name of a field"),
    ],
)
def test_bad_names(group, part):
    with pytest.raises(InputError) as caught:
        grouped([{"page": i} for i in range(20)], group)
    assert part in str(caught.value)


def test_a_mapping_is_no_value():
    with pytest.raises(InputError, match=r"'page' holds a mapping: name one of its fields, as in page\.id"):
        grouped([{"page": {"id": i}} for i in range(20)], "page")


def _country(example):
    asked = example.prompt.partition("capital of ")[2]
    return asked.partition("?")[0] or example.target.strip()


def _asked_country(example):
    found = re.match(r"The (?:country|capital|currency) of (.*) is|(.*) shares a border", example.prompt)
    return (found and (found[1] or found[2])) or example.target.strip()


@pytest.mark.model
@pytest.mark.parametrize(
    ("name", "fact"),
    [
        ("capitals", _country),
        ("boolq", lambda example: example.prompt.rpartition("\nQuestion:")[0]),
        ("piqa", lambda example: example.prompt),
        ("countries", _asked_country),
    ],
)
def test_builtin_tasks_keep_facts_together(name, fact):
    facts = [{same(fact(example)) for example in part} for part in load_task(name).splits().values()]
    assert min(map(len, facts)) > 25
    assert sum(map(len, facts)) == len(set.union(*facts))
