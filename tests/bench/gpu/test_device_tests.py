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


def run(folder: Path, text: str, seconds: float, *options: str) -> tuple[dict[str, float], str]:
    (folder / "test_suite.py").write_text(text)
    place = Place(torch.device("cpu"), time.monotonic() + seconds, folder)
    cells = device_tests.run(place, [str(folder / "test_suite.py"), *options])
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


SPOILS = """
import pytest, torch

def broken(*device):
    raise RuntimeError("an illegal memory access was encountered")

@pytest.mark.parametrize("value", range(20))
def test_some(value):
    if value == 3:
        torch.cuda.is_available, torch.cuda.synchronize = (lambda: True), broken
    if torch.cuda.synchronize is broken:
        broken()
"""


def test_a_spoiled_device_fails_one_test(tmp_path):
    """One process stops there: what comes after it has not run, rather than failed."""
    cells, text = run(tmp_path, SPOILS, 60)
    assert cells == {"tests.failed": 1, "tests.passed": 3, "tests.skipped": 0, "tests.not_run": 16}
    assert "test_some[3]: RuntimeError: an illegal memory access was encountered" in text


def test_a_spoiled_device_ends_one_of_several_processes(tmp_path):
    """The others go on; the test that would have been the next is not one that failed."""
    pytest.importorskip("xdist")
    cells, _ = run(tmp_path, SPOILS, 60, "-n", "2")
    assert cells["tests.failed"] == 1
    assert cells["tests.passed"] >= 18
    assert cells["tests.not_run"] <= 1
