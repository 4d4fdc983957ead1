"""Tasks in the form of lm-evaluation-harness: the same questions as there, and a refusal where they would not be."""

import json
import sys
from types import SimpleNamespace

import pytest

import sieve
from sieve.errors import InputError
from sieve.tasks import load_task

CHOICE = """\
task: toy_choice
dataset_path: json
dataset_kwargs:
  data_files: {train: train.jsonl, validation: validation.jsonl, test: test.jsonl}
training_split: train
validation_split: validation
test_split: test
output_type: multiple_choice
doc_to_text: "Question: {{question}}\\nAnswer:"
doc_to_target: "{{choices.label.index(answerKey)}}"
doc_to_choice: "{{choices.text}}"
should_decontaminate: true
doc_to_decontamination_query: question
metric_list:
  - metric: acc
  - metric: acc_norm
metadata:
  version: 1.0
"""
WRITTEN = """\
task: toy_written
dataset_path: json
output_type: generate_until
training_split: train
doc_to_text: "{{question}}"
doc_to_target: "{{[question[-1], 'other']}}"
generation_kwargs: {until: ["\\n", "</s>"], max_gen_toks: 7, do_sample: false}
metric_list: [{metric: exact_match, ignore_case: true, ignore_punctuation: true}]
filter_list: [{name: none, filter: [{function: remove_whitespace}, {function: take_first}]}]
"""


def document(number, split):
    return {
        "question": f"{split} {number}",
        "choices": {"label": ["A", "B", "C"], "text": [f"one {number}", "two", "three"]},
        "answerKey": "ABC"[number % 3],
        "label": number % 3,
    }


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hf")
    for split, count in (("train", 30), ("validation", 12), ("test", 9)):
        rows = [document(number, split) for number in range(count)]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "choice.yaml").write_text(CHOICE)
    (tmp_path / "written.yaml").write_text(WRITTEN)
    return tmp_path


def test_choices(folder):
    task = load_task(f"lm_eval:{folder}/choice.yaml")
    assert (task.name, task.type, task.normalize, task.shots) == ("toy_choice", "multiple_choice", "none", 0)
    parts = task.splits()
    assert len(parts["test"]) == 9
    assert {example.prompt for example in parts["test"]} == {f"Question: test {n}\nAnswer:" for n in range(9)}
    for example in parts["test"]:
        number = int(example.prompt.split()[2])
        assert example.choices == (f" one {number}", " two", " three")
        assert example.answer == number % 3


def test_written_answers(folder):
    task = load_task(f"lm_eval:{folder}/written.yaml", folder / "train.jsonl")
    assert (task.metric, task.normalise, task.max_new_tokens, task.stop) == ("exact_match", "squad", 7, "\n")
    every = [example for part in task.splits().values() for example in part]
    assert len(every) == 30
    assert all(example.references == (example.prompt[-1], "other") for example in every)


@pytest.mark.parametrize(
    ("changes", "type", "prompt", "target"),
    [
        ({"output_type: generate_until": "output_type: loglikelihood"}, "perplexity", "train 4", " 4"),
        ({"output_type: generate_until": "output_type: loglikelihood_rolling"}, "perplexity", "", "4"),
    ],
)
def test_likelihoods(folder, changes, type, prompt, target):
    text = WRITTEN.replace("{{[question[-1], 'other']}}", "{{question[-1]}}")
    for old, new in changes.items():
        text = text.replace(old, new)
    (folder / "likelihood.yaml").write_text(text)
    task = load_task(f"lm_eval:{folder}/likelihood.yaml", folder / "train.jsonl")
    every = [example for part in task.splits().values() for example in part]
    assert task.type == type
    assert any((example.prompt, example.target) == (prompt, target) for example in every)


def test_description_fields_and_delimiters(folder):
    text = CHOICE.replace('"Question: {{question}}\\nAnswer:"', "question")
    text = text.replace('"{{choices.text}}"', "[x, y]")
    text = text.replace("{{choices.label.index(answerKey)}}", "{{'xy'[label % 2]}}")
    (folder / "other.yaml").write_text(text + 'description: "Say.\\n"\ntarget_delimiter: "\\n"\n')
    rows = load_task(f"lm_eval:{folder}/other.yaml").splits()["test"]
    (second,) = (one for one in rows if one.prompt == "Say.\ntest 1")
    assert (second.choices, second.answer) == (("\nx", "\ny"), 1)


def test_a_task_is_kept_with_its_folder(folder, monkeypatch):
    """Its file is named from anywhere, and data of one's own stand in the place of the hub's."""
    monkeypatch.chdir(folder)
    task = load_task("lm_eval:choice.yaml", "train.jsonl")
    (folder / "kept.json").write_text(json.dumps(task.to_dict()))
    (folder / "kept.json").rename(folder / "kept.yaml")
    monkeypatch.chdir("/")
    assert load_task(folder / "kept.yaml").splits() == task.splits()


def test_an_included_file(folder):
    (folder / "_base").write_text(CHOICE)
    (folder / "more.yaml").write_text("include: _base\ntask: more\nnum_fewshot: 2\n")
    task = load_task(f"lm_eval:{folder}/more.yaml")
    assert (task.name, task.shots) == ("more", 2)
    assert task.splits()["test"][0].prompt.count("Question:") == 3
    (folder / "loop.yaml").write_text("include: loop.yaml\n")
    with pytest.raises(InputError, match="included by itself"):
        load_task(f"lm_eval:{folder}/loop.yaml")


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('"{{choices.text}}"', "!function utils.choices", "names Python code (!function), which is not run"),
        ("metadata:", "process_docs: x\nmetadata:", "the key 'process_docs' of lm-eval's tasks is not supported"),
        (
            '"{{choices.label.index(answerKey)}}"',
            "-1",
            "has the label -1, none of its 3 choices: labels of",
        ),
        ('"{{choices.label.index(answerKey)}}"', '"{{label - 1}}"', "has the label -1"),
        ('"{{choices.label.index(answerKey)}}"', "7", "has the label 7, none of its 3 choices"),
        ('"Question: {{question}}\\nAnswer:"', '"{{label}}"', "its contexts vary and what follows them is fixed"),
        ("metadata:", 'target_delimiter: ""\nmetadata:', "a target_delimiter without white space"),
        ("{{question}}", "{{nothing}}", "the template 'Question: {{nothing}}.*' fails: 'nothing' is undefined"),
        ("{{question}}", "{{question * 10000000}}", "fails: \\* of large values"),
        ("{{question}}", "{{question.__class__.__mro__}}", "fails: access to attribute '__class__'"),
        ("task: toy_choice", "task: [a, b]", "is a group of tasks"),
        ("output_type: multiple_choice", "output_type: other", "the output_type 'other'"),
        ("dataset_path: json", "dataset_path: 7", "dataset_path cannot be read here"),
        ("test_split: test", "test_split: test\nnum_fewshot: 1\ndescription: x", "num_fewshot beside a description"),
    ],
)
def test_what_would_be_scored_otherwise_is_refused(folder, old, new, words):
    assert old in CHOICE
    (folder / "bad.yaml").write_text(CHOICE.replace(old, new))
    with pytest.raises(InputError, match=words.replace("(!", r"\(!").replace("n),", r"n\),")) as refusal:
        load_task(f"lm_eval:{folder}/bad.yaml").splits()
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("do_sample: false", "do_sample: true", "drawn at random"),
        ('["\\n", "</s>"]', '["\\n", "."]', "they can end at one text alone"),
        ("remove_whitespace", "regex", "its filter 'regex' is not supported"),
        ("metric: exact_match", "metric: code_eval", "its metric 'code_eval' is not supported"),
        ("ignore_case: true", "regexes_to_ignore: [x]", "its metric 'exact_match' is not supported"),
    ],
)
def test_answers_that_would_be_judged_otherwise(folder, old, new, words):
    assert old in WRITTEN
    (folder / "bad.yaml").write_text(WRITTEN.replace(old, new))
    with pytest.raises(InputError, match=words):
        load_task(f"lm_eval:{folder}/bad.yaml")


def test_the_librarys_own_tasks_are_found_without_importing_it(folder, monkeypatch):
    place = folder / "lm_eval"
    (place / "tasks" / "toys").mkdir(parents=True)
    (place / "tasks" / "toys" / "default.yaml").write_text(CHOICE)
    found = SimpleNamespace(submodule_search_locations=[str(place)])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: found if name == "lm_eval" else None)
    assert load_task("lm_eval:toy_choice", folder / "train.jsonl").name == "toy_choice"
    with pytest.raises(InputError, match="lm-eval has no task 'toy'"):
        load_task("lm_eval:toy")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install lm-eval"):
        load_task("lm_eval:toy_choice")
    assert "lm_eval" not in sys.modules


def test_rows_of_it_are_predicted(folder, world):
    model, tokenizer = sieve.load_model(world.model)
    task = load_task(f"lm_eval:{folder}/choice.yaml")
    (one,) = sieve.predict(model, tokenizer, task, [{"query": "Which?", "choices": [" a", " b"]}])
    assert one.answer in ("a", "b")
