"""Where data comes from."""

import json
import sys

import pytest

from sieve.errors import InputError
from sieve.tasks.rows import load_pools

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


def test_datasets_errors_are_one_line(tmp_path):
    jsonl(tmp_path / "train.jsonl")
    with pytest.raises(InputError, match=r"cannot load the dataset .*dev") as caught:
        load({"dataset": str(tmp_path), "split": "dev"}, tmp_path)
    assert "\n" not in str(caught.value)


def test_a_file_in_a_package(tmp_path, monkeypatch):
    (tmp_path / "sieve_fake_data").mkdir()
    (tmp_path / "sieve_fake_data" / "__init__.py").write_text("raise ImportError('not to be imported')")
    jsonl(tmp_path / "sieve_fake_data" / "x.jsonl")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    pools = load({"package": "sieve_fake_data==1.0", "path": "x.jsonl"}, tmp_path)
    assert values(pools[""]) == ROWS


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
        ("x.txt", b"a", r"must be one of \.jsonl, \.csv, \.parquet"),
    ],
)
def test_damaged_files(tmp_path, name, content, match):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=match):
        load(name, tmp_path)


def test_a_folder_without_data(tmp_path):
    with pytest.raises(InputError, match="holds no"):
        load(str(tmp_path), tmp_path)
