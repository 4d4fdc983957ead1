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


LISTENING = """
import os, signal, subprocess, sys
from tests.sieve.searchers.engine.test_ray_workers import acting, plans_of
from tests.tiny_models import tiny_model

if __name__ == "__main__":
    mine = lambda number, frame: None
    signal.signal(signal.SIGTERM, mine)
    stack, engine = acting(tiny_model("llama"), lambda rank: None, 1)
    with stack:
        engine.scores(plans_of([1, 2]), 0)
        import ray
        import psutil
        ours = {child.pid for child in psutil.Process().children(recursive=True)} | {os.getpid()}
        for line in subprocess.run(["ss", "-ltnpH"], capture_output=True, text=True).stdout.splitlines():
            if any(f"pid={pid}," in line for pid in ours):
                print("port", line.split()[3])
        code = f"import ray; ray.init('{ray.get_runtime_context().gcs_address}', log_to_driver=False); print('in')"
        bare = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        command = [sys.executable, "-c", code]
        try:
            done = subprocess.run(
                command, env={**bare, "RAY_AUTH_MODE": "disabled"}, capture_output=True, text=True, timeout=25
            )
            print("stranger", done.stdout.split())
        except subprocess.TimeoutExpired:  # it tries again and again
            print("stranger []")
    left = [name for name in os.environ if name.startswith("RAY_AUTH")]
    print("left", left, signal.getsignal(signal.SIGTERM) is mine)
"""


@pytest.mark.slow
def test_our_own_cluster_is_for_this_process_alone(tmp_path):
    """It listens on the loopback interface and turns strangers away; signal handlers stay what they were."""
    script = tmp_path / "listening.py"
    script.write_text(LISTENING)
    # Nothing of a cluster that this process or its caller has set up.
    bare = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess.run([sys.executable, script], env=bare, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    ports = [line.split()[1] for line in lines if line.startswith("port")]
    assert len(ports) >= 4
    assert all("127.0.0.1" in port or "[::1]" in port for port in ports), ports
    assert "stranger []" in lines
    assert lines[-1] == "left [] True"
