"""The journal through everything that can happen to a file."""

import pytest

from sieve.errors import InputError, StorageError
from sieve.searchers.engine.journal import Journal

IDENTITY = {"model": "abc", "data": [1, 2], "recipe": {"seed": 0}}


def written(path, number=3):
    with Journal(path, IDENTITY) as journal:
        for i in range(number):
            journal.add(f"key {i}", {"score": [i / 3, 1.0], "cost": i})
    return path.read_bytes()


def test_round_trip_to_the_bit(tmp_path):
    path = tmp_path / "deep" / "journal"
    written(path)
    with Journal(path, IDENTITY) as journal:
        assert list(journal.records) == ["key 0", "key 1", "key 2"]
        assert journal.records["key 1"] == {"score": [1 / 3, 1.0], "cost": 1}
        journal.add("key 3", {"cost": 9})
    with Journal(path, IDENTITY) as journal:
        assert len(journal.records) == 4


def test_cut_anywhere_loses_at_most_the_last_line(tmp_path):
    """A crash at every byte: the file opens, holds what was complete, and goes on."""
    path = tmp_path / "journal"
    content = written(path)
    for length in range(len(content)):
        path.write_bytes(content[:length])
        complete = max(content[:length].count(b"\n") - 1, 0)
        with Journal(path, IDENTITY) as journal:
            assert len(journal.records) == complete
            journal.add("again", {"cost": 1})
        with Journal(path, IDENTITY) as journal:
            assert list(journal.records) == [f"key {i}" for i in range(complete)] + ["again"]


def test_a_damaged_middle_is_refused_and_named(tmp_path):
    path = tmp_path / "journal"
    content = written(path)
    lines = content.splitlines(keepends=True)
    for number in (1, 2, 3):
        damaged = [*lines]
        damaged[number - 1] = damaged[number - 1].replace(b"e", b"f", 1)
        path.write_bytes(b"".join(damaged))
        with pytest.raises(StorageError, match=f"line {number} is damaged"), Journal(path, IDENTITY):
            pass
        assert path.read_bytes() == b"".join(damaged)


def test_a_lost_and_a_repeated_line_are_found(tmp_path):
    path = tmp_path / "journal"
    lines = written(path).splitlines(keepends=True)
    for changed in ([lines[0], *lines[2:]], [lines[0], lines[1], *lines[1:]]):
        path.write_bytes(b"".join(changed))
        with pytest.raises(StorageError, match="is damaged"), Journal(path, IDENTITY):
            pass


def test_a_damaged_last_line_is_dropped(tmp_path):
    path = tmp_path / "journal"
    content = written(path)
    path.write_bytes(content[:-5] + b"xxxx\n")
    with Journal(path, IDENTITY) as journal:
        assert list(journal.records) == ["key 0", "key 1"]


def test_another_search_is_refused_naming_what_changed(tmp_path):
    path = tmp_path / "journal"
    content = written(path)
    other = {**IDENTITY, "model": "xyz", "recipe": {"seed": 1}}
    with pytest.raises(InputError, match="changed since are model, recipe"), Journal(path, other):
        pass
    assert path.read_bytes() == content


def test_a_foreign_file_is_refused(tmp_path):
    path = tmp_path / "journal"
    path.write_text("hello\nworld\nagain\n")
    with pytest.raises(StorageError, match="line 1"), Journal(path, IDENTITY):
        pass
    assert path.read_text() == "hello\nworld\nagain\n"


def test_a_full_disk_stops_cleanly_and_can_be_resumed(tmp_path, monkeypatch):
    path = tmp_path / "journal"
    with Journal(path, IDENTITY) as journal:
        journal.add("one", {"cost": 1})
        whole = path.read_bytes()
        file = journal._file

        class Full:
            def write(self, data):
                return file.write(data[: len(data) // 2])

            def __getattr__(self, name):
                return getattr(file, name)

        journal._file = Full()
        with pytest.raises(StorageError, match=r"No space left.*--resume"):
            journal.add("two", {"cost": 2})
        assert path.read_bytes() == whole
    with Journal(path, IDENTITY) as journal:
        assert list(journal.records) == ["one"]


def test_a_foreign_line_is_not_taken_for_a_torn_one(tmp_path):
    path = tmp_path / "journal"
    path.write_text("my notes")
    with pytest.raises(InputError, match="no journal"), Journal(path, IDENTITY):
        pass
    assert path.read_text() == "my notes"


def test_two_searches_with_one_journal(tmp_path):
    path = tmp_path / "journal.txt"
    with Journal(path, IDENTITY) as first:
        first.add("a", {"score": [1.0]})
        with pytest.raises(InputError, match="a search that is running"), Journal(path, IDENTITY):
            pass
        first.add("b", {"score": [2.0]})
    with Journal(path, IDENTITY) as again:
        assert list(again.records) == ["a", "b"]
