"""Whole pruned models through vLLM's own model classes and loader, on a CPU, on several ranks that exchange numbers."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import sieve
from tests.sieve.conftest import ROWS, TASK, write_task
from tests.sieve_vllm.pruned_models import pruned
from tests.tiny_models import VOCABULARY, tiny_model, tiny_pruned, tiny_tokenizer

pytestmark = pytest.mark.slow

FAMILIES = ["llama", "qwen2", "qwen3", "mistral", "gemma", "phi3", "gpt2", "opt"]
KINDS = ["default", "stacked pairs", "pairs"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Folder of each pruned model → its logits of the ids that the ranks take."""
    pytest.importorskip("vllm")
    root, ids = tmp_path_factory.mktemp("pruned"), torch.arange(3, 15)
    task, wanted = write_task(root / "legs.yaml", TASK, ROWS), {}
    for name in FAMILIES:
        for kind in KINDS:
            # Mistral is fitted about means, and so has biases for which the architecture has no place.
            mean = True if name == "mistral" else None
            of_layers = kind == "pairs"  # pairs beside dense layers
            model = tiny_pruned(name, pivoted=True) if of_layers else pruned(tiny_model(name), kind, task, mean)
            folder = root / f"{name} {kind}".replace(" ", "-")
            sieve.save(model, tiny_tokenizer(), folder)
            with torch.inference_mode():
                wanted[str(folder)] = model(ids[None]).logits[0]
    return wanted


@pytest.mark.parametrize("size", [1, 2, 4])
def test_every_folder_gives_the_logits_that_it_gives_here(folders, size, tmp_path):
    """On 4 ranks there are fewer key-value heads than ranks, and ranks without any channel."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    script, out, log = Path(__file__).with_name("model_of_rank.py"), tmp_path / "logits.pt", tmp_path / "log"
    with log.open("w") as file:
        ranks = [
            subprocess.Popen(
                [sys.executable, script, str(rank), str(size), port, out, *folders],
                stdout=file, stderr=file, env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
            for rank in range(size)
        ]  # fmt: skip
        try:
            for rank in ranks:
                rank.wait(timeout=900)
        finally:
            for rank in ranks:
                rank.kill()
    assert out.is_file(), log.read_text()[-4000:]
    for found, (folder, wanted) in zip(torch.load(out), folders.items(), strict=True):
        assert wanted.shape[-1] == VOCABULARY
        torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4, msg=lambda text, at=folder: f"{at}: {text}")
