"""The kernels' tests on a device: outcomes are counted and named, however the run ends."""

import time
from pathlib import Path

import pytest
import torch

from bench.gpu import device_tests
from bench.gpu.job import LeftOut, Place

SUITE = """
import time
import pytest

@pytest.mark.parametrize("value", [1, 2])
def test_good(value):
    assert value

def test_bad():
    raise ValueError("the sum is 3")

def test_elsewhere():
    pytest.skip("not here")

def test_broken_afterwards(request):
    request.addfinalizer(lambda: 1 / 0)
"""
HANGS = """
def test_that_hangs():
    time.sleep(1000)

def test_behind_it():
    pass
"""


def run(folder: Path, text: str, seconds: float) -> tuple[dict[str, float], str]:
    (folder / "test_suite.py").write_text(text)
    place = Place(torch.device("cpu"), time.monotonic() + seconds, folder)
    cells = device_tests.run(place, [str(folder / "test_suite.py")])
    assert {file.name for file in folder.iterdir()} <= {"test_suite.py", "tests.txt", "__pycache__"}
    return cells, (folder / "tests.txt").read_text()


def test_what_fails_is_named(tmp_path):
    cells, text = run(tmp_path, SUITE, 60)
    assert cells == {"tests.failed": 2, "tests.passed": 2, "tests.skipped": 1, "tests.not_run": 0}
    assert "test_suite.py::test_bad: ValueError: the sum is 3" in text
    assert "test_broken_afterwards: ZeroDivisionError" in text


def test_what_has_run_counts_when_the_time_is_up(tmp_path, monkeypatch):
    """A kernel that hangs: the run is stopped, and what ran before is told, and what was running."""
    monkeypatch.setattr(device_tests, "GRACE", 0)
    started = time.monotonic()
    cells, text = run(tmp_path, SUITE + HANGS, 6)
    assert time.monotonic() - started < 15
    assert cells == {"tests.failed": 2, "tests.passed": 2, "tests.skipped": 1, "tests.not_run": 2}
    assert "RUNNING AT THE END" in text
    assert "test_that_hangs" in text


def test_files_that_need_a_package_are_left_out_by_name(tmp_path):
    cells, text = run(tmp_path, "import no_such_package\n", 60)
    assert cells["tests.failed"] == 0
    assert "left out:" in text
    assert "no_such_package" in text


def test_a_run_without_tests_is_no_success(tmp_path):
    place = Place(torch.device("cpu"), time.monotonic() + 60, tmp_path)
    with pytest.raises(LeftOut, match="no test has run"):
        device_tests.run(place, ["--no-such-option"])
