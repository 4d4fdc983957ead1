"""Files and folders appear whole or not at all, with the user's modes; leftovers of killed processes go."""

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from sieve.errors import StorageError
from sieve.utils import files
from sieve.utils.files import atomic_file, atomic_folder, remove_leftovers, write_text

WRITE = """
import sys, time
from sieve.utils.files import atomic_file, atomic_folder
with {kind}(sys.argv[1]) as path:
    (path / "half" if path.is_dir() else path).write_text("half")
    print("writing", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def writer():
    """Starts a process that never finishes writing a path; killed at the end."""
    started = []

    def start(kind: str, path: Path) -> subprocess.Popen:
        command = [sys.executable, "-c", WRITE.format(kind=kind), str(path)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout.readline() == "writing\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


@pytest.mark.parametrize(("mask", "file", "folder"), [(0o077, 0o600, 0o700), (0o022, 0o644, 0o755), (0, 0o666, 0o777)])
def test_modes_follow_the_umask(tmp_path, mask, file, folder):
    before = os.umask(mask)
    try:
        write_text(tmp_path / "text", "x")
        with atomic_folder(tmp_path / "made") as path:
            (path / "sub").mkdir()
            for one in (path / "a", path / "sub" / "b"):
                one.write_text("x")
                one.chmod(0o600)  # as safetensors does
    finally:
        os.umask(before)
    modes = {str(path.relative_to(tmp_path)): stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*")}
    assert modes == {"text": file, "made": folder, "made/a": file, "made/sub": folder, "made/sub/b": file}


@pytest.mark.parametrize("kind", ["atomic_file", "atomic_folder"])
def test_leftovers_of_a_killed_process_go_with_the_next_write(tmp_path, writer, kind):
    process = writer(kind, tmp_path / "out")
    assert [path.name[:5] for path in tmp_path.iterdir()] == [".out."]
    write_text(tmp_path / "other", "x")
    assert len(list(tmp_path.iterdir())) == 2  # a live process keeps what it writes
    process.send_signal(signal.SIGKILL)
    process.wait()
    write_text(tmp_path / "other", "y")
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


def test_what_is_not_ours_stays(tmp_path):
    """Hidden folders with a foreign lock file, links, and names that look like ours."""
    foreign = [tmp_path / ".out.abcd1234" / "model", tmp_path / ".mine" / "sieve.lock", tmp_path / ".git" / "config"]
    for file in foreign:
        file.parent.mkdir()
        file.write_text("keep")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "sieve.lock").write_text("process 1 on here\n")
    place = tmp_path / "place"
    place.mkdir()
    (place / ".link").symlink_to(outside)
    remove_leftovers(tmp_path)
    remove_leftovers(place)
    assert all(file.read_text() == "keep" for file in foreign)
    assert (outside / "sieve.lock").exists()


def test_nothing_goes_where_locks_do_nothing(tmp_path, writer, monkeypatch):
    """As on some network drives: whether the writer is alive cannot be told."""
    writer("atomic_file", tmp_path / "out")
    monkeypatch.setattr(files.fcntl, "flock", lambda *args: None)
    write_text(tmp_path / "other", "x")
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("there", [True, False])
def test_links_are_followed(tmp_path, there):
    """What is named is the link's target; a folder in the place of a link cannot be renamed to it."""
    target, link = tmp_path / "disk" / "out", tmp_path / "link"
    (target if there else target.parent).mkdir(parents=True)
    link.symlink_to(target)
    with atomic_folder(link) as path:
        (path / "file").write_text("x")
    assert link.is_symlink()
    assert (target / "file").read_text() == "x"
    (tmp_path / "text").symlink_to(tmp_path / "disk" / "text")
    write_text(tmp_path / "text", "y")
    assert (tmp_path / "disk" / "text").read_text() == "y"


def test_long_names(tmp_path):
    write_text(tmp_path / ("n" * 255), "x")
    with pytest.raises(StorageError, match="too long"), atomic_file(tmp_path / ("n" * 256)) as path:
        path.write_text("x")
    assert [len(path.name) for path in tmp_path.iterdir()] == [255]
