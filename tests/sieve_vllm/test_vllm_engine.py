"""vLLM's whole engine on a CPU, with its own scheduler, cache and attention: adapters, ranks, a server."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from importlib.metadata import distributions
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

import sieve
from tests.sieve.conftest import ROWS, TASK, write_task
from tests.sieve_vllm.pruned_models import pruned
from tests.tiny_models import TINY, VOCABULARY, randomise_, tiny_tokenizer

pytestmark = pytest.mark.slow

KINDS = ["default", "stacked pairs", "pivoted pairs", "plain pairs", "mask"]
ADAPTED = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
PROMPTS = [list(range(3, 15)), [90, 40, 7], list(range(100, 60, -1))]
TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
SECONDS = 1200  # for an engine to come up and answer; a first call compiles


@pytest.fixture(scope="module")
def engine():
    """What it takes to start an engine: vLLM as it is built for CPUs, and the plugin installed."""
    if not pytest.importorskip("vllm.platforms").current_platform.is_cpu():
        pytest.skip("this vLLM is not built for CPUs")
    # Processes of the engine look for the plugin among installed distributions.
    if not list(distributions(name="sieve-vllm")):
        pytest.skip("sieve-vllm is not installed")


@pytest.fixture(scope="module")
def folders(engine, tmp_path_factory):
    """Kind → folder of a pruned model, and beside it one of an adapter of all its matrices."""
    root = tmp_path_factory.mktemp("pruned")
    task, found = write_task(root / "legs.yaml", TASK, ROWS), {}
    for kind in KINDS:
        torch.manual_seed(0)
        # Heads as small as the engine's attention takes.
        config = LlamaConfig(**{**TINY["llama"]().to_dict(), "head_dim": 32})
        model = pruned(randomise_(AutoModelForCausalLM.from_config(config)).eval(), kind, task)
        tokenizer = tiny_tokenizer()
        tokenizer.chat_template = TEMPLATE
        folder = root / kind.replace(" ", "-")
        sieve.save(model, tokenizer, folder)
        found[kind] = folder
        adapted(folder).save_pretrained(folder.with_suffix(".adapter"))
    return found


def adapted(folder: Path):
    peft = pytest.importorskip("peft")
    torch.manual_seed(1)
    config = peft.LoraConfig(r=4, target_modules=ADAPTED, task_type="CAUSAL_LM", init_lora_weights=False)
    return peft.get_peft_model(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), config)


def job(folder: Path, adapter: bool = False, **options) -> dict:
    return {
        "model": str(folder),
        "adapter": str(folder.with_suffix(".adapter")) if adapter else None,
        "prompts": PROMPTS,
        "new": 12,
        "top": VOCABULARY,
        "options": options,
    }


def answered(jobs: list[dict], folder: Path) -> list[list[dict]]:
    """What the engine, in a process of its own, makes of the jobs."""
    (folder / "jobs.json").write_text(json.dumps(jobs))
    script, log = Path(__file__).with_name("engine_of_folders.py"), folder / "log"
    with log.open("w") as file:
        subprocess.run(
            [sys.executable, script, folder / "jobs.json", folder / "out.json"],
            stdout=file, stderr=file, timeout=SECONDS, env=environment(), cwd=folder,
        )  # fmt: skip
    assert (folder / "out.json").is_file(), log.read_text()[-4000:]
    return json.loads((folder / "out.json").read_text())


def environment() -> dict[str, str]:
    """Threads are not bound to cores, since vLLM binds each rank to a NUMA node of its own."""
    return {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_NO_USAGE_STATS": "1",
    }


def check(one: dict, rows: list[dict]) -> None:
    """Every log-probability is transformers' of the same folder, and every new token is the likeliest there."""
    model = AutoModelForCausalLM.from_pretrained(one["model"], dtype=torch.float32)
    if one["adapter"]:
        model = pytest.importorskip("peft").PeftModel.from_pretrained(model, one["adapter"])
    assert len(rows) == len(PROMPTS)
    for prompt, row in zip(PROMPTS, rows, strict=True):
        tokens = row["tokens"]
        assert tokens[: len(prompt)] == prompt
        assert len(tokens) == len(prompt) + one["new"]
        with torch.inference_mode():
            wanted = model(torch.tensor([tokens])).logits[0, :-1].log_softmax(-1)
        found = torch.tensor([[scores[str(token)] for token in range(VOCABULARY)] for scores in row["logprobs"]])
        assert len(found) == one["new"] + (0 if one["adapter"] else len(prompt) - 1)
        torch.testing.assert_close(found, wanted[-len(found) :], atol=1e-3, rtol=1e-3)
        chosen = torch.tensor(tokens[len(prompt) :])
        behind = wanted[len(prompt) - 1 :]
        lost = behind.max(-1).values - behind.gather(-1, chosen[:, None])[:, 0]
        assert lost.max() < 2e-3  # where two are as likely, either is right


def test_every_form_and_its_adapter_give_the_log_probabilities_of_transformers(folders, tmp_path):
    jobs = [job(folder, adapter, enforce_eager=True) for folder in folders.values() for adapter in (False, True)]
    for one, rows in zip(jobs, answered(jobs, tmp_path), strict=True):
        check(one, rows)


def test_compiled_graphs_give_them_too(folders, tmp_path):
    jobs = [job(folders[kind]) for kind in ("default", "pivoted pairs")]
    for one, rows in zip(jobs, answered(jobs, tmp_path), strict=True):
        check(one, rows)


def test_two_ranks_give_them_too(folders, tmp_path):
    one = job(folders["stacked pairs"], enforce_eager=True, tensor_parallel_size=2)
    check(one, answered([one], tmp_path)[0])


def test_the_server_answers_as_transformers_does(folders, tmp_path):
    """A completion and a chat, of the model and of an adapter.

    The module that `vllm serve` runs: the command itself asks for a distribution named vllm, which vllm-cpu is not.
    """
    folder, tokenizer = folders["default"], tiny_tokenizer()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
    command = [
        *(sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", folder, "--host", "127.0.0.1"),
        *("--port", address.rpartition(":")[2], "--dtype", "float32", "--max-model-len", "128", "--enforce-eager"),
        *("--enable-lora", "--lora-modules", f"mine={folder.with_suffix('.adapter')}"),
    ]
    log = tmp_path / "log"
    with log.open("w") as file:
        server = subprocess.Popen(
            command, stdout=file, stderr=file, env=environment(), cwd=tmp_path, start_new_session=True
        )
        try:
            wait_for(f"{address}/health", server, log)
            text, ids = "Word 3: spider.", tokenizer("Word 3: spider.").input_ids
            base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
            models = {str(folder): base, "mine": adapted(folder).eval()}
            asked = {"max_tokens": 1, "temperature": 0, "logprobs": 1}
            for name, model in models.items():
                with torch.inference_mode():
                    best = model(torch.tensor([ids])).logits[0, -1].log_softmax(-1).max().item()
                done = post(f"{address}/v1/completions", {"model": name, "prompt": text, **asked})
                assert done["choices"][0]["logprobs"]["token_logprobs"] == pytest.approx([best], abs=1e-3)
                chat = {"model": name, "messages": [{"role": "user", "content": text}], **asked, "logprobs": True}
                done = post(f"{address}/v1/chat/completions", chat)
                assert done["choices"][0]["logprobs"]["content"][0]["logprob"] == pytest.approx(best, abs=1e-3)
        finally:
            if server.poll() is None:
                os.killpg(server.pid, signal.SIGTERM)
                try:
                    server.wait(timeout=60)
                except subprocess.TimeoutExpired:
                    os.killpg(server.pid, signal.SIGKILL)


def wait_for(url: str, server: subprocess.Popen, log: Path) -> None:
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        assert server.poll() is None, log.read_text()[-4000:]
        try:
            urllib.request.urlopen(url, timeout=5)
            return
        except OSError:
            time.sleep(1)
    raise AssertionError(log.read_text()[-4000:])


def post(url: str, body: dict) -> dict:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=SECONDS) as answer:
        return json.load(answer)
