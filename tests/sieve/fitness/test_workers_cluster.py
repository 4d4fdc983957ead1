"""A cluster that runs already, reached by its address: as on several machines, but on one."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from sieve.fitness.workers import THREADS
from tests.sieve.fitness.test_engine import svd_factors
from tests.sieve.fitness.test_workers import outcome, searched
from tests.tiny_models import tiny_model, tiny_tokenizer

pytest.importorskip("ray")
pytest.importorskip("grpc")


@pytest.fixture
def address(tmp_path):
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
def test_same_result_as_in_this_process(world, address):
    model = tiny_model("llama")
    small = SimpleNamespace(model=model, tokenizer=tiny_tokenizer(), task=world.task, factors=svd_factors(model))
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    try:
        alone = searched(small)
    finally:
        torch.set_num_threads(before)
    assert outcome(searched(small, workers=address)) == outcome(alone)
