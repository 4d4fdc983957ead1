"""YAML from anywhere: plain values, or one line that says what is wrong."""

import json
import tracemalloc

import pytest

from sieve.errors import InputError
from sieve.utils.safe_yaml import DEEPEST, LARGEST, read_yaml


@pytest.fixture
def read(tmp_path):
    def read(content: str | bytes):
        path = tmp_path / "x.yaml"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return read_yaml(path, "the task file")

    return read


@pytest.mark.parametrize(
    ("content", "want"),
    [
        ("a: [1, x]\nb: {c: null}", {"a": [1, "x"], "b": {"c": None}}),
        ("base: &b {x: 1, y: 2}\nmore: {<<: *b, x: 3}", {"base": {"x": 1, "y": 2}, "more": {"x": 3, "y": 2}}),
        ("a: &a [1]\nb: *a\nc: *a", {"a": [1], "b": [1], "c": [1]}),
        (b"\xef\xbb\xbfa: 1\r\nb: 2\r\n", {"a": 1, "b": 2}),  # Windows' beginning of a file, and ends of lines
        (json.dumps({"a": "😀 é", "b": [1.5, True, None]}), {"a": "😀 é", "b": [1.5, True, None]}),
        ("", None),
        ("[" * (DEEPEST - 1) + "]" * (DEEPEST - 1), ...),
    ],
)
def test_plain_values(read, content, want):
    value = read(content)
    assert want is ... or value == want


BOMB = "a0: &a0 [lol]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 10))
MERGES = "a0: &a0 {x: lol}\n" + "".join(
    f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}], k{i}: 1}}\n" for i in range(1, 10)
)
LONG = "a: &a " + "x" * 10**5 + "\nb: [" + ", ".join(["*a"] * 100) + "]\n"


REFUSED = [
    (BOMB, "aliases, written out, are larger"),
    (MERGES, "aliases, written out, are larger"),
    (LONG, "aliases, written out, are larger"),
    ("data: &d [{text: x, me: *d}]", r"alias \*'d' stands inside what it names \(line 1\)"),
    ("&a [*a]", "stands inside"),
    ("&a {<<: *a}", "stands inside"),
    ("[" * 100_000, "nested more than 50 levels"),
    ("[" * 100_000 + "]" * 100_000, "nested more than 50 levels"),
    ("{a: " * 100_000, "nested more than 50 levels"),
    ("- " * 100_000, "nested more than 50 levels"),
    ("a: 1\nb: 2\na: 3", r"the key 'a' stands twice \(line 3\)"),
    ('{"a": 1, "a": 1}', "stands twice"),
    ("a: *b", "undefined alias"),
    ("a: [", "is not YAML"),
    ("a: 1\n---\nb: 2", "is not YAML"),
    ("a: \x00", "is not YAML"),
    ("a: 2001-99-99", "a value cannot be read"),
    ("a: 0b_", "a value cannot be read"),
    ("a: !!bool maybe", "a value cannot be read"),
    ("a: !!timestamp x", "a value cannot be read"),
    ("a: !!int x", "a value cannot be read"),
    ("a: " + "9" * 5000, "a value cannot be read"),
    ("!!python/object/apply:os.system ['true']", "could not determine a constructor"),
    ("{[1]: 2}", "unhashable"),
    ('"\\ud800"', "half a character"),
    (b"\xff\xfea\x00", "it is not UTF-8"),
    (b"x" * (LARGEST + 1), "is larger than 2 MiB"),
]


@pytest.mark.parametrize(("content", "part"), REFUSED, ids=range(len(REFUSED)))
def test_refusals_take_one_line_and_little_memory(read, content, part):
    tracemalloc.start()
    with pytest.raises(InputError, match=part) as caught:
        read(content)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10 * LARGEST
    message = str(caught.value)
    assert "x.yaml" in message
    assert "\n" not in message
    assert len(message) < 600


@pytest.mark.parametrize("name", ["none.yaml", ".", "x\0y.yaml", "y" * 5000])
def test_what_is_no_file(tmp_path, name):
    with pytest.raises(InputError, match="cannot read the recipe"):
        read_yaml(f"{tmp_path}/{name}", "the recipe")
