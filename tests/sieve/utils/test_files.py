"""Locks: one holder at a time, named; none that a dead process holds."""

import os
import signal
import socket
import subprocess
import sys

import pytest

from sieve.errors import StorageError
from sieve.utils.files import lock_holder, try_lock

HOLD = (
    "import sys, time; from sieve.utils.files import try_lock; held = try_lock(sys.argv[1]); print('held', flush=True)"
)


def test_a_lock_has_one_holder_whom_it_names(tmp_path):
    place = tmp_path / "lock"
    lock = try_lock(place)
    assert try_lock(place) is None
    assert lock_holder(place) == f"process {os.getpid()} on {socket.gethostname()}"
    lock.close()
    with try_lock(place) as again:
        assert again is not None
    assert try_lock(place) is not None


def test_a_killed_process_holds_no_lock(tmp_path):
    place = tmp_path / "lock"
    command = [sys.executable, "-c", f"{HOLD}; time.sleep(60)", str(place)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        assert try_lock(place) is None
        assert lock_holder(place).startswith(f"process {holder.pid} on ")
        holder.send_signal(signal.SIGKILL)
    assert try_lock(place) is not None


def test_a_removed_file_is_locked_anew(tmp_path, monkeypatch):
    """Its holder removes it just when another process has opened it: that must not end with a lock on nothing."""
    place = tmp_path / "lock"
    place.write_text("")
    from sieve.utils import files

    plain = files.fcntl.flock

    def removing(file, flags):
        plain(file, flags)
        monkeypatch.setattr(files.fcntl, "flock", plain)
        place.unlink()

    monkeypatch.setattr(files.fcntl, "flock", removing)
    lock = try_lock(place)
    assert os.path.samestat(os.fstat(lock.fileno()), place.stat())
    assert try_lock(place) is None


def test_a_place_without_room_for_a_lock(tmp_path):
    with pytest.raises(StorageError, match="cannot write"):
        try_lock(tmp_path / "missing" / "lock")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    with pytest.raises(StorageError, match="cannot write"):
        try_lock(tmp_path / "link")
    assert not (tmp_path / "target").exists()
