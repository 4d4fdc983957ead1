"""Data of installed packages: read without importing any, and never from outside the package."""

import json
import sys

import pytest

from sieve.errors import InputError
from sieve.tasks.data import check_source, load_pools

ROW = {"a": 1}


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package, a subpackage "sieve_fake_data.inner" and a file beside both; importing either fails."""
    folder = tmp_path / "site" / "sieve_fake_data"
    for place in (folder, folder / "inner"):
        place.mkdir(parents=True)
        (place / "__init__.py").write_text("raise ImportError('not to be imported')")
        (place / "x.jsonl").write_text(json.dumps(ROW | {"a": place.name}))
    (tmp_path / "secret.jsonl").write_text(json.dumps({"a": "secret"}))
    monkeypatch.setattr(sys, "path", [str(tmp_path / "site"), *sys.path])
    yield folder
    assert not [name for name in sys.modules if name.startswith("sieve_fake_data")]


def load(package: str, path: str):
    data = {"package": package, "path": path}
    check_source(data, "task.yaml")
    return {name: [row.values["a"] for row in rows] for name, rows in load_pools(data, None, "task.yaml").items()}


@pytest.mark.parametrize("version", ["", "==1.0"])
def test_a_file(package, version):
    assert load(f"sieve_fake_data{version}", "x.jsonl") == {"": ["sieve_fake_data"]}
    assert load(f"sieve_fake_data{version}", "inner/x.jsonl") == {"": ["inner"]}
    assert load(f"sieve_fake_data.inner{version}", "x.jsonl") == {"": ["inner"]}


def test_a_folder(package):
    assert load("sieve_fake_data", "inner") == {"x": ["inner"]}
    assert load("sieve_fake_data.inner", ".") == {"x": ["inner"]}


@pytest.mark.parametrize("name", ["sieve_fake_data.none", "sieve_fake_none", "sieve_fake_none.inner", "__main__"])
def test_missing(package, name):
    with pytest.raises(InputError, match=f'needs the package .* pip install --no-deps "{name}==1"'):
        load(f"{name}==1", "x.jsonl")


@pytest.mark.parametrize(
    "name", ["", ".sieve_fake_data", "sieve_fake_data.", "a..b", "../site", "a b", "a==1; x", 'a"', "a==", "a\n"]
)
def test_what_is_no_package(package, name):
    with pytest.raises(InputError, match="package in data must be a name"):
        load(name, "x.jsonl")


@pytest.mark.parametrize("path", ["", "../../secret.jsonl", "inner/../../../secret.jsonl", "/etc/passwd", "x\0"])
def test_a_path_that_leaves_the_package(package, path):
    with pytest.raises(InputError, match="path in data must be inside the package"):
        load("sieve_fake_data", path)


def test_links_that_leave_the_package(package, tmp_path):
    (package / "out.jsonl").symlink_to(tmp_path / "secret.jsonl")
    (package / "folder").symlink_to(tmp_path)
    (package / "data").mkdir()
    (package / "data" / "train.jsonl").symlink_to(tmp_path / "secret.jsonl")
    for path in ("out.jsonl", "folder", "folder/secret.jsonl", "data"):
        with pytest.raises(InputError, match="outside the package"):
            load("sieve_fake_data", path)
    with pytest.raises(InputError, match="outside the package"):
        load("sieve_fake_data.folder", "secret.jsonl")


def test_links_inside_the_package(package):
    (package / "data.jsonl").symlink_to(package / "inner" / "x.jsonl")
    assert load("sieve_fake_data", "data.jsonl") == {"": ["inner"]}
