"""A cluster that runs already, reached by its address: as on several machines, but on one."""

import os
import secrets
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sieve.searchers.engine.ray_workers import THREADS
from tests.sieve.run.test_resume import arguments, process, result

pytest.importorskip("ray")
pytest.importorskip("grpc")

MEASURED = ("layer_tokens_spent", "cost_ratio", "saved_by", "states_peak_bytes")


@pytest.fixture
def address(tmp_path, monkeypatch):
    """Of a cluster with a token of its own, whatever is set up for others on this machine."""
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path / "log"
    with open(log, "w") as output:
        running = subprocess.Popen(
            [Path(sys.executable).with_name("ray"), "start", "--head", "--block", "--port=0", "--num-cpus=2",
             f"--ray-client-server-port={port}", "--include-dashboard=false", "--disable-usage-stats"],
            stdout=output, stderr=output, env=os.environ | {"PYTHONPATH": os.getcwd()},
        )  # fmt: skip
    for _ in range(600):
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            break
        except OSError:
            assert running.poll() is None, log.read_text()
            time.sleep(0.2)
    yield f"ray://127.0.0.1:{port}"
    running.terminate()
    running.wait(60)


@pytest.mark.slow
def test_same_result_as_in_one_process(world, address, tmp_path, monkeypatch):
    """In processes of their own: Ray looks for tokens when it is imported."""
    monkeypatch.setenv("OMP_NUM_THREADS", str(THREADS))
    reports = []
    for name, more in (("alone", ()), ("shared", ("--workers", address))):
        monkeypatch.setenv("SIEVE_CACHE", str(tmp_path / "cache"))
        done = process(*arguments(world, tmp_path / name), *more)
        _, errors = done.communicate()
        assert done.returncode == 0, errors
        report = result(tmp_path / name)
        # What states spare depends on which worker has them, and so on moments.
        report["search"] = {key: value for key, value in report["search"].items() if key not in MEASURED}
        reports.append(report)
    assert "starting 2 workers" in errors
    assert reports[0] == reports[1]
