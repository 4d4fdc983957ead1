"""Where data comes from."""

import csv
import json
import os
import socket
import subprocess
import sys

import pytest

from sieve.errors import InputError
from sieve.tasks.data import load_pools

ROWS = [{"text": 'é, "quoted"\nline', "label": 1}, {"text": "b", "label": 0}]


def jsonl(path, rows=ROWS):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def parquet(path, rows=ROWS):
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def values(pool):
    return [dict(row.values) for row in pool]


def load(data, folder):
    return load_pools(data, folder, "task.yaml")


def test_jsonl(tmp_path):
    jsonl(tmp_path / "x.jsonl")
    pools = load("x.jsonl", tmp_path)
    assert values(pools[""]) == ROWS
    assert [row.where for row in pools[""]] == ["x.jsonl line 1", "x.jsonl line 2"]


def test_csv_has_texts(tmp_path):
    (tmp_path / "x.csv").write_text('\ufefftext,label\n"é, ""quoted""\nline",1\nb,0\n', encoding="utf-8")
    assert values(load("x.csv", tmp_path)[""]) == [{"text": ROWS[0]["text"], "label": "1"}, {"text": "b", "label": "0"}]


def test_parquet(tmp_path):
    parquet(tmp_path / "x.parquet", [{"a": {"b": [1, 2]}}])
    assert values(load("x.parquet", tmp_path)[""]) == [{"a": {"b": [1, 2]}, "a.b": [1, 2]}]


def test_folder_of_split_files(tmp_path):
    jsonl(tmp_path / "test.jsonl", ROWS[:1])
    parquet(tmp_path / "train-00000-of-00002.parquet", ROWS[:1])
    parquet(tmp_path / "train-00001-of-00002.parquet", ROWS[1:])
    (tmp_path / "README.md").write_text("no data")
    assert {name: len(rows) for name, rows in load(str(tmp_path), tmp_path / "elsewhere").items()} == {
        "test": 1,
        "train": 2,
    }


def test_datasets(tmp_path):
    for name in ("train", "test"):
        jsonl(tmp_path / f"{name}.jsonl")
    pools = load({"dataset": str(tmp_path)}, tmp_path)
    assert {name: values(rows) for name, rows in pools.items()} == {"train": ROWS, "test": ROWS}
    assert list(load({"dataset": str(tmp_path), "split": "train"}, tmp_path)) == [""]


@pytest.mark.parametrize("place", ["refuses", "is silent"])
def test_a_hub_that_cannot_be_reached_costs_seconds(tmp_path, place):
    """In one line, without a client's retries, whether nothing listens there or nothing answers."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        if place == "is silent":
            server.listen()
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        code = (
            "import time; from pathlib import Path\n"
            "import datasets; from sieve.tasks.data import load_pools\n"
            "started = time.monotonic()\n"
            "try: load_pools({'dataset': 'someone/something'}, Path(), 'task')\n"
            "except Exception as error: print(type(error).__name__, error)\n"
            "print(time.monotonic() - started)"
        )
        environment = os.environ | {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0"}
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    said, seconds = done.stdout.splitlines()
    assert said.startswith("InputError task: the hub cannot be reached, and the dataset 'someone/something' is neither")
    assert float(seconds) < 5
    assert done.stderr == ""


def test_datasets_errors_are_one_line(tmp_path):
    jsonl(tmp_path / "train.jsonl")
    with pytest.raises(InputError, match=r"cannot load the dataset .*dev") as caught:
        load({"dataset": str(tmp_path), "split": "dev"}, tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("x.jsonl", b'{"a": 1}\n\n{"a": \n', "x.jsonl line 3 is not JSON"),
        ("x.jsonl", b"[1, 2]\n", "x.jsonl line 1 must be a JSON object"),
        ("x.jsonl", b'{"a": "\xff"}\n', "cannot read .*x.jsonl"),
        ("x.jsonl", b"\n", "the data is empty"),
        ("x.csv", b"a,b\n", "the data is empty"),
        ("x.csv", b"a,b\n1,2,3\n", "x.csv row 1 has more values than the header"),
        ("x.parquet", b"not parquet", "cannot read .*x.parquet"),
        ("x.jsonl", b'{"a": 1, "a": 2}', "x.jsonl line 1 is not JSON: the key 'a' stands twice"),
        ("x.jsonl", b"[" * 100_000, "line 1 is not JSON of ordinary depth"),
        ("x.jsonl", b'{"a": ' + b"9" * 5000 + b"}", "line 1 is not JSON"),
        ("x.jsonl", b'\0{"a": 1}', "line 1 is not JSON"),
        ("x.jsonl", b"[" + b"0," * 10**5 + b"0]", "line 1 must be a JSON object with named fields, got"),
        ("x.jsonl", '{"a": "é"}'.encode("utf-16"), "it is not UTF-8"),
        ("x.csv", "a,b\né,1".encode("latin-1"), "it is not UTF-8"),
        ("x.csv", b"a,b,a\n1,2,3\n", "x.csv has two columns named 'a'"),
        ("x.csv", b'a,b\n1,2\n"open,3\n4,5\n', "x.csv row 2 is not CSV"),
        ("x.csv", b'"a,b\n1,2', "the header of x.csv is not CSV"),
        ("x.csv", b"", "the data is empty"),
        ("x.parquet", b"", "cannot read .*x.parquet"),
        ("x.txt", b"a", r"must be one of \.jsonl, \.csv, \.parquet"),
    ],
)
def test_damaged_files(tmp_path, name, content, match):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=match) as caught:
        load(name, tmp_path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("end", ["\n", "\r\n", "\n\n", "\n\ufeff"])
def test_ends_of_lines_and_byte_order_marks(tmp_path, end):
    lines = ["\ufeff" + json.dumps(ROWS[0]), json.dumps(ROWS[1]), ""]
    (tmp_path / "x.jsonl").write_bytes(end.join(lines).encode())
    assert values(load("x.jsonl", tmp_path)[""]) == ROWS
    (tmp_path / "x.csv").write_bytes(f"\ufefftext,label{end}a,1{end}b,0{end}".replace("\n\ufeff", "\n").encode())
    assert values(load("x.csv", tmp_path)[""]) == [{"text": "a", "label": "1"}, {"text": "b", "label": "0"}]


@pytest.mark.parametrize("mark", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\0"])
def test_a_mark_that_ends_no_line_stays_in_its_text(tmp_path, mark):
    text = f"one{mark}two"
    (tmp_path / "x.jsonl").write_text(json.dumps({"a": text}, ensure_ascii=False))
    (tmp_path / "x.csv").write_text(f"a,b\n{text},1\n", newline="")
    assert load("x.jsonl", tmp_path)[""][0].field("a") == text
    if mark != "\0" or sys.version_info >= (3, 11):
        assert load("x.csv", tmp_path)[""][0].field("a") == text


def test_csv_of_spreadsheets(tmp_path):
    """An index without a name, blanks in the header, commas at the ends, blank lines, a short row."""
    (tmp_path / "x.csv").write_text(",text, label,,\n0,a,1,,\n\n1,b,0\n2,c\n3,d,1,,,,\n")
    rows = load("x.csv", tmp_path)[""]
    assert [row.values.get("text") for row in rows] == ["a", "b", "c", "d"]
    assert [row.values.get("label") for row in rows] == ["1", "0", None, "1"]
    assert set(rows[0].values) == {"text", "label"}
    with pytest.raises(InputError, match="row 3 has no field 'label'"):
        rows[2].field("label")


def test_long_csv_fields(tmp_path):
    limit = csv.field_size_limit()
    text = "word " * 60_000
    (tmp_path / "x.csv").write_text(f"a,b\n{text},1\n")
    assert load("x.csv", tmp_path)[""][0].field("a") == text
    assert csv.field_size_limit() == limit
    (tmp_path / "x.csv").write_text('a,b\n"open')
    with pytest.raises(InputError):
        load("x.csv", tmp_path)
    assert csv.field_size_limit() == limit


def test_bytes_of_parquet_are_text(tmp_path):
    parquet(tmp_path / "x.parquet", [{"a": "é".encode(), "b": [b"x", b"y"]}, {"a": b"\xff", "b": [b"x", b"\xff"]}])
    first, second = load("x.parquet", tmp_path)[""]
    assert first.field("a") == "é"
    assert first.field("b") == ["x", "y"]
    for name in ("a", "b"):
        with pytest.raises(InputError, match=rf"x\.parquet row 2: the field '{name}' holds bytes that are not UTF-8"):
            second.field(name)


def test_parquet_with_two_columns_of_one_name(tmp_path):
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.Table.from_arrays([pyarrow.array([1]), pyarrow.array([2])], names=["a", "a"])
    pyarrow.parquet.write_table(table, tmp_path / "x.parquet")
    with pytest.raises(InputError, match=r"x\.parquet has two columns named 'a'"):
        load("x.parquet", tmp_path)


def test_rows_that_contain_themselves():
    row = {"a": 1}
    row["me"] = row
    assert load([row], None)[""][0].field("a") == 1


def test_names_with_dots(tmp_path):
    jsonl(tmp_path / "x.jsonl", [{"a.b": "own", "a": {"b": "nested", "c": {"d": 1}}}])
    (row,) = load("x.jsonl", tmp_path)[""]
    assert row.field("a.b") == "own"
    assert row.field("a.c.d") == 1


def test_links_in_a_circle(tmp_path):
    (tmp_path / "x.jsonl").symlink_to(tmp_path / "x.jsonl")
    with pytest.raises(InputError, match="does not exist"):
        load("x.jsonl", tmp_path)
    with pytest.raises(InputError, match=r"cannot read .*x\.jsonl"):
        load(str(tmp_path), tmp_path)


def test_folders_named_as_files(tmp_path):
    (tmp_path / "x.jsonl").mkdir()
    (tmp_path / "x.jsonl" / "train.jsonl").mkdir()
    with pytest.raises(InputError, match=r"cannot read .*train\.jsonl: Is a directory"):
        load("x.jsonl", tmp_path)


def test_hidden_files_are_no_splits(tmp_path):
    jsonl(tmp_path / "train.jsonl")
    (tmp_path / "._train.jsonl").write_bytes(b"\0\5\x16\7")
    assert list(load(str(tmp_path), tmp_path)) == ["train"]


def test_a_folder_without_data(tmp_path):
    with pytest.raises(InputError, match="holds no"):
        load(str(tmp_path), tmp_path)
