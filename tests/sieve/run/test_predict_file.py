"""`sieve predict` and `sieve generate`: files in and out, nothing lost, nothing half-written."""

import csv
import io
import json
import sys
from types import SimpleNamespace

import pyarrow
import pyarrow.parquet
import pytest

from sieve.errors import InputError
from sieve.run import predict
from tests.sieve.conftest import ROWS, write_task
from tests.sieve.test_cli import own_cache, run  # noqa: F401 - fixtures

UNANSWERED = [{"id": f"row {row['number']}", "number": row["number"], "animal": row["animal"]} for row in ROWS[:30]]
WRITTEN = """\
type: generation
data: legs.jsonl
prompt: "Word {number}:"
answer: animal
max_new_tokens: 4
"""


@pytest.fixture
def rows(tmp_path):
    """A file of rows without answers, one with nested and odd values."""
    first = UNANSWERED[0] | {"extra": {"deep": [1, None]}, "text": 'é "quoted"\x1b[2J\ud800', "gone": float("nan")}
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n\n" for row in [first, *UNANSWERED[1:]]))
    return path


@pytest.fixture
def writing(tmp_path):
    return write_task(tmp_path / "animals.yaml", WRITTEN, ROWS)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_json_lines(world, rows, tmp_path):
    output = tmp_path / "answers.jsonl"
    assert predict.predict_file(world.model, str(rows), output, world.task) == 30
    given, answered = [json.loads(line) for line in rows.read_text().splitlines() if line], lines(output)
    assert given[0].pop("gone") != given[0]
    assert answered[0].pop("gone") is None
    for before, after in zip(given, answered, strict=True):
        assert list(after) == [*before, "prediction", "probability", "probabilities"]
        assert {name: after[name] for name in before} == before
        assert list(after["probabilities"]) == ["few", "many"]
        assert after["probability"] == after["probabilities"][after["prediction"]] >= 0.5


def test_csv_in_and_out(world, rows, tmp_path):
    table = tmp_path / "rows.csv"
    table.write_text('﻿,number,animal,note\n7,0,ant,"a, ""b""\nc"\n8,1,bee\n')
    output = tmp_path / "answers.csv"
    predict.predict_file(world.model, str(table), output, world.task)
    with output.open(newline="") as file:
        found = list(csv.reader(file))
    assert found[0] == ["", "number", "animal", "note", "prediction", "probability", "probabilities"]
    assert [row[:4] for row in found[1:]] == [["7", "0", "ant", 'a, "b"\nc'], ["8", "1", "bee", ""]]
    assert all(float(row[5]) == json.loads(row[6])[row[4]] for row in found[1:])
    # Fields that the first row does not have are columns, too.
    predict.predict_file(world.model, str(rows), tmp_path / "mixed.csv", world.task)
    with (tmp_path / "mixed.csv").open(newline="") as file:
        mixed = list(csv.DictReader(file))
    assert json.loads(mixed[0]["extra"]) == {"deep": [1, None]}
    assert mixed[1]["extra"] == mixed[0]["gone"] == ""


def test_parquet_in(world, tmp_path):
    table = pyarrow.table({"number": [1, 2], "animal": ["ant", "bee"], "at": pyarrow.array([0, 1], pyarrow.date32())})
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet")
    predict.predict_file(world.model, str(tmp_path / "rows.parquet"), tmp_path / "a.jsonl", world.task)
    assert [(row["number"], row["at"]) for row in lines(tmp_path / "a.jsonl")] == [(1, "1970-01-01"), (2, "1970-01-02")]


def test_standard_input_to_standard_output(world, rows, tmp_path, monkeypatch, capsys):
    output = tmp_path / "answers.jsonl"
    predict.predict_file(world.model, str(rows), output, world.task)
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(rows.read_bytes())))
    predict.predict_file(world.model, "-", None, world.task)
    printed = capsys.readouterr().out
    assert printed == output.read_text()
    assert "\x1b" not in printed


def test_a_written_answer_and_another_models(world, writing, tmp_path):
    data = tmp_path / "rows.csv"
    data.write_text("number,prompt\n0,a\n1,b\n")
    predict.predict_file(world.model, str(data), tmp_path / "a.jsonl", writing)
    answered = lines(tmp_path / "a.jsonl")
    assert [list(row) for row in answered] == [["number", "prompt", "prediction"]] * 2
    assert predict.generate(world.model, "1", writing) == {world.model: answered[1]["prediction"]}
    both = predict.generate(world.model, "1", writing, against=world.model + "/")
    assert list(both) == [world.model, world.model + "/"]
    assert len(set(both.values())) == 1


def test_a_prompt_of_several_fields_is_json(world, tmp_path):
    task = write_task(tmp_path / "animals.yaml", WRITTEN.replace("{number}:", "{number} {label}:"), ROWS)
    assert predict.generate(world.model, '{"number": 1, "label": 0}', task)
    with pytest.raises(InputError, match=r'has 2 fields: give them as JSON, {"number": …, "label": …}'):
        predict.generate(world.model, "1", task)
    with pytest.raises(InputError, match="the prompt is not JSON"):
        predict.generate(world.model, "{1", task)


def test_choices_are_not_written(world):
    with pytest.raises(InputError, match="`sieve predict` answers its questions"):
        predict.generate(world.model, "1", world.task)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"number": 1, "animal": "a"}\n{"number": 2}\n', "line 2 has no field 'animal'"),
        ('{"number": 1, "animal": "a", "probability": 1}', "line 1 already has a field 'probability'"),
        ('{"number": 1, "animal": "a"}\n[1]\n', "line 2 must be a JSON object"),
        ("", "holds no rows"),
        ('{"number": 1}', "prompt names an unknown field 'animal'"),
    ],
)
def test_bad_rows_are_found_before_the_model_is_loaded(world, tmp_path, monkeypatch, content, words):
    path = tmp_path / "rows.jsonl"
    path.write_text(content)
    monkeypatch.setattr("sieve.models.loading.load_model", lambda *given: pytest.fail("the model is loaded"))
    with pytest.raises(InputError, match=words):
        predict.predict_file(world.model, str(path), tmp_path / "out.jsonl", world.task)
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.parametrize(
    ("file", "output", "words"),
    [
        ("rows.jsonl", "out.txt", "cannot write .*out.txt: predictions are written to .jsonl or .csv files"),
        ("rows.jsonl", "rows.jsonl", "already exists"),
        ("rows.txt", "out.jsonl", "rows must be in one of .jsonl, .csv, .parquet, or - for JSON lines"),
        ("none.jsonl", "out.jsonl", "cannot read .*none.jsonl"),
    ],
)
def test_files_that_cannot_be(world, rows, tmp_path, file, output, words):
    with pytest.raises(InputError, match=words):
        predict.predict_file(world.model, str(tmp_path / file), tmp_path / output, world.task)
    assert rows.exists()


def test_an_error_leaves_no_file(world, rows, tmp_path, monkeypatch):
    from sieve.evaluation import predict as library

    def fails_late(*given, **more):
        yield from library_rows(*given, **more)
        raise InputError("too late")

    library_rows = library.predict_rows
    monkeypatch.setattr(library, "predict_rows", fails_late)
    with pytest.raises(InputError, match="too late"):
        predict.predict_file(world.model, str(rows), tmp_path / "out.jsonl", world.task)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rows.jsonl"]


def test_the_commands(run, world, rows, writing, tmp_path):  # noqa: F811
    """What they print is the result alone; a pruned folder knows its task."""
    output = tmp_path / "out.csv"
    code, out, err = run("predict", world.model, rows, "--task", world.task, "--output", output)
    assert (code, out) == (0, f"30 rows with answers are in {output}\n"), err
    code, out, _ = run("predict", world.model, rows, "--task", world.task, "--quiet")
    assert [json.loads(line)["prediction"] for line in out.splitlines()] == [
        row["prediction"] for row in csv.DictReader(output.open(newline=""))
    ]
    code, out, err = run("generate", world.model, "7", "--task", writing, "--against", world.model, "--quiet")
    assert (code, err) == (0, "")
    code, out, err = run("generate", world.model, "7", "--task", writing, "--json", "--quiet")
    assert json.loads(out).keys() == {world.model}
    code, out, err = run("predict", world.model, rows)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "use --task" in err
