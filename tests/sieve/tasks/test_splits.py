"""Splits: disjoint, deterministic, and blind to the order of the data."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sieve.errors import InputError
from sieve.tasks import Example, Task
from sieve.tasks.splits import DEFAULT_SIZES, SPLITS, split


def examples(texts):
    return [Example(text, references=(text,), question=text.casefold()) for text in texts]


def divide(pools, sizes=DEFAULT_SIZES, seed=0):
    return split({name: examples(texts) for name, texts in pools.items()}, sizes, seed, "task.yaml")


def texts(part):
    return [example.prompt for example in part]


NUMBERS = [str(number) for number in range(100)]


def test_sizes_by_fraction():
    assert [len(part) for part in divide({"": NUMBERS}).values()] == [40, 20, 20, 20]


def test_sizes_by_count_and_fraction():
    sizes = {"calibration": 0.5, "fitness": 10, "validation": 0.1, "test": 25}
    assert [len(part) for part in divide({"": NUMBERS}, sizes).values()] == [50, 10, 10, 25]


def test_fractions_below_one_leave_a_rest():
    sizes = dict.fromkeys(SPLITS, 0.1)
    assert [len(part) for part in divide({"": NUMBERS}, sizes).values()] == [10] * 4


def test_order_of_the_data_does_not_matter():
    assert divide({"": NUMBERS}) == divide({"": NUMBERS[::-1]})


def test_seeds_differ():
    assert divide({"": NUMBERS}, seed=0) == divide({"": NUMBERS}, seed=0)
    assert set(texts(divide({"": NUMBERS}, seed=0)["test"])) != set(texts(divide({"": NUMBERS}, seed=1)["test"]))


@settings(max_examples=60, deadline=None)
@given(
    numbers=st.lists(st.integers(0, 40), min_size=40, max_size=120),
    seed=st.integers(0, 5),
    train=st.booleans(),
)
def test_no_question_stands_in_two_splits(numbers, seed, train):
    half = len(numbers) // 2
    words = [f"{'Question' if number % 3 else 'question'} {number}" for number in numbers]
    pools = {"train": words[:half], "test": words[half:]} if train else {"": words}
    try:
        parts = divide(pools, seed=seed)
    except InputError:  # so few different questions that a split would stay empty
        return
    questions = [{example.question for example in part} for part in parts.values()]
    assert sum(map(len, questions)) == len(set.union(*questions))


def test_duplicates_stay_in_one_split():
    parts = divide({"": NUMBERS * 3})
    assert sum(map(len, parts.values())) > 290
    for name, part in parts.items():
        for other, others in parts.items():
            assert name == other or not set(texts(part)) & set(texts(others))


class TestSplitFiles:
    def pools(self, *names):
        return {name: [f"{name} {number}" for number in range(100)] for name in names}

    def origin(self, parts):
        return {name: {text.split()[0] for text in texts(part)} for name, part in parts.items()}

    @pytest.mark.parametrize(
        ("names", "want"),
        [
            (["train", "validation", "test"], ["train", "train", "validation", "test"]),
            (["train", "test"], ["train", "train", "train", "test"]),
            (["train", "dev"], ["train", "train", "dev", "dev"]),
            (["validation", "test"], ["validation", "validation", "validation", "test"]),
            (["train"], ["train"] * 4),
            (["test"], ["test"] * 4),
            (list(SPLITS), list(SPLITS)),
            (["calibration", "test"], ["calibration", "calibration", "calibration", "test"]),
        ],
    )
    def test_where_each_split_comes_from(self, names, want):
        got = self.origin(divide(self.pools(*names)))
        assert got == {name: {source} for name, source in zip(SPLITS, want, strict=True)}

    def test_a_file_is_shared_in_proportion(self):
        parts = divide(self.pools("train", "test"))
        assert [len(part) for part in parts.values()] == [50, 25, 25, 100]

    def test_a_question_in_two_files_counts_in_the_later_one(self):
        pools = {"train": NUMBERS, "test": NUMBERS[:30]}
        parts = divide(pools)
        assert set(texts(parts["test"])) == set(NUMBERS[:30])
        assert not set(NUMBERS[:30]) & set(texts(parts["calibration"] + parts["fitness"] + parts["validation"]))

    def test_unknown_names(self):
        with pytest.raises(InputError, match=r"no split file for 'calibration' among part1, part2: name them train"):
            divide(self.pools("part1", "part2"))


@pytest.mark.parametrize("seed", range(5))
def test_one_large_group_leaves_examples_for_all(seed):
    parts = divide({"": ["large"] * 500 + NUMBERS}, seed=seed)
    sizes = {name: len(part) for name, part in parts.items()}
    without = {name: len([text for text in texts(part) if text != "large"]) for name, part in parts.items()}
    assert sum(size == 0 for size in without.values()) <= 1  # the one that has the large group may have that alone
    assert min(sizes.values()) >= 10


@pytest.mark.parametrize("seed", [-1, -(10**30), 2**32, 1.0, True, None, "0"])
def test_seeds_that_not_every_generator_takes(seed):
    with pytest.raises(InputError, match="the seed must be a whole number from 0"):
        Task("t", "perplexity", [{"x": str(i)} for i in range(20)], "{x}").splits(seed)


def test_all_the_same_question():
    with pytest.raises(InputError, match="the fitness split is empty"):
        divide({"": ["same"] * 50})


def labelled(labels, choices=(" no", " maybe", " yes")):
    return [
        Example(f"prompt {i}", choices, choices.index(label), question=f"prompt {i}") for i, label in enumerate(labels)
    ]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("kind", ["multiple_choice", "generation"])
def test_every_split_has_each_label_in_proportion(seed, kind):
    labels = [" yes"] * 140 + [" no"] * 50 + [" maybe"] * 10
    pool = labelled(labels)
    if kind == "generation":
        pool = [Example(one.prompt, references=(one.target.strip(),), question=one.question) for one in pool]
    parts = split({"": pool}, DEFAULT_SIZES, seed, "task.yaml")
    for name, part in parts.items():
        for label in (" yes", " no", " maybe"):
            share = sum(one.target.strip() == label.strip() for one in part)
            assert share == pytest.approx(labels.count(label) * DEFAULT_SIZES[name], abs=2), (name, label)
    again = split({"": pool[::-1]}, DEFAULT_SIZES, seed, "task.yaml")
    assert parts == again
    assert {one.prompt for one in parts["test"]} != {
        one.prompt for one in split({"": pool}, DEFAULT_SIZES, seed + 1, "task.yaml")["test"]
    }


def test_groups_of_mixed_labels_stay_whole_and_in_proportion():
    pool = [
        Example(f"{group} {i}", (" no", " yes"), answer, question=f"{group} {i}", group=f"g{group}")
        for group in range(200)
        for i, answer in enumerate([0] if group % 4 else [0, 1, 1])
    ]
    parts = split({"": pool}, DEFAULT_SIZES, 0, "task.yaml")
    groups = [{one.group for one in part} for part in parts.values()]
    assert sum(map(len, groups)) == len(set.union(*groups))
    shares = [sum(one.answer for one in part) / len(part) for part in parts.values()]
    assert max(shares) - min(shares) < 0.06


def test_a_warning_where_a_label_is_missing_from_a_split():
    pool = labelled([" yes"] * 60 + [" no"] * 60 + [" maybe"])
    with pytest.warns(UserWarning, match="some answers are missing from a split.*'maybe'"):
        split({"": pool}, DEFAULT_SIZES, 0, "task.yaml")


def test_a_rare_answer_is_not_always_in_one_split():
    pool = labelled([" yes"] * 60 + [" no"] * 60 + [" maybe"])
    homes = set()
    for seed in range(12):
        with pytest.warns(UserWarning, match="missing"):
            parts = split({"": pool}, DEFAULT_SIZES, seed, "task.yaml")
        homes |= {name for name, part in parts.items() if any(one.target == " maybe" for one in part)}
    assert len(homes) > 2


def test_questions_with_choices_of_their_own_have_no_labels(recwarn):
    pool = [Example(f"q{i}", (f" a{i}", f" b{i}"), i % 2, question=f"q{i}") for i in range(100)]
    parts = split({"": pool}, DEFAULT_SIZES, 0, "task.yaml")
    assert [len(part) for part in parts.values()] == [40, 20, 20, 20]
    assert not recwarn
