"""Sieve's results on tiny models, as JSON: a change that should change nothing is compared with them.

    python -m tests.golden.replay          # write golden.json again, after an intended change of results

Summaries that do not depend on the signs of eigenvectors hold on every machine, up to rounding. Exact bits, and plans
of searches, which near ties can change, hold only on one kind of machine: `machine()`.
"""

import hashlib
import json
import platform
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import nn

import sieve
from sieve.run.recipe import Recipe
from sieve.searchers.run import run_search
from tests.tiny_models import tiny_model, tiny_tokenizer, tiny_tokens

HERE = Path(__file__).parent
GOLDEN = HERE / "golden.json"
FOLDERS = ("pairs", "pivoted", "masks", "shared", "mixed")  # mixed is of version 2, the others of version 1
FAMILIES = ("llama", "gpt2", "phi3", "gemma")
SEARCHES = ("uniform", "budget", "ga", "pareto")
ANIMALS = ["ant", "bee", "cat", "dog", "eel", "fox", "gnu", "hen"]
TASK = """\
name: legs
type: multiple_choice
data: legs.jsonl
prompt: "Word {number}: {animal}. Legs:"
choices: [" few", " many"]
answer: label
"""
SMALL = {"population": 4, "offspring": 6, "generations": 2, "bottlenecks": 2}
TIMES = {"seconds", "versions"}


def machine() -> dict[str, str]:
    """The kind of machine on which equal bits are expected."""
    found = Path("/proc/cpuinfo")
    names = [line for line in found.read_text().splitlines() if line.startswith("model name")] if found.exists() else []
    return {
        "cpu": names[0].partition(": ")[2] if names else platform.processor(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "numpy": np.__version__,
    }


def task(folder: Path) -> Path:
    """A task file with 160 examples, made in `folder`."""
    rows = [{"number": i, "animal": ANIMALS[i % 8], "label": (i * i // 3) % 2} for i in range(160)]
    (folder / "legs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "legs.yaml").write_text(TASK)
    return folder / "legs.yaml"


def family(name: str, folder: Path) -> dict[str, Any]:
    """Factors, masks, and models pruned by them, of one architecture."""
    model, tokenizer, legs = tiny_model(name), tiny_tokenizer(), task(folder)
    result: dict[str, Any] = {"dense": logits(model)}
    for method in ("output_aligned", "loss_aware"):
        statistics = sieve.calibrate(model, tokenizer, legs, tokens=800, method=method)
        factors = sieve.project(model, statistics, method)
        result[method] = {
            "maps": {key: energy(pair.B.double() @ pair.A.double()) for key, pair in factors.items()},
            "bits": digest(tensor for pair in factors.values() for tensor in (pair.A, pair.B)),
        }
    plan = sieve.Plan.uniform(factors.matrices(model).values(), 0.5, 4)
    statistics = sieve.calibrate(model, tokenizer, legs, tokens=800, method="wanda")
    for method in ("wanda", "sparsegpt"):
        pruned = tiny_model(name)
        masks = sieve.mask(pruned, statistics, method)
        sieve.apply_(pruned, masks, sieve.Plan.uniform(masks.matrices(pruned).values(), 0.5))
        result[method] = stored(pruned)
    for pivoted in (False, True):
        pruned = tiny_model(name)
        chosen = sieve.project(pruned, statistics, "output_aligned", pivoted)
        result["pivoted" if pivoted else "pairs"] = stored(sieve.apply_(pruned, chosen, plan))
    return result


def searched(name: str, folder: Path) -> dict[str, Any]:
    """The plan of a searcher, all candidates that it scored, and its journal without the header."""
    model, tokenizer, legs = tiny_model("llama"), tiny_tokenizer(), task(folder)
    factors = sieve.project(model, sieve.calibrate(model, tokenizer, legs, tokens=800))
    journal = folder / f"{name}.txt"
    # For a given size the allocation has one candidate; with a tolerance it has several.
    aim = {"kept": 0.6} if name != "budget" else {"tolerance": 0.3}
    found = run_search(
        model, tokenizer, factors, legs, search=name, rank_multiple=4, journal=journal, **{**SMALL, **aim}
    )
    records = [json.loads(line.split(" ", 1)[1]) for line in journal.read_text().splitlines()[1:]]
    return {
        "plan": dict(found.plan),
        "evaluated": [[dict(one.plan), one.scores.accuracy, one.scores.mean_loglik] for one in found.evaluated],
        "tried": [dict(one.plan) for one in found.tried],
        "journal": hashlib.sha256(json.dumps(records).encode()).hexdigest(),
    }


def mixed() -> nn.Module:
    """A pruned model with a layer of every format: pair, pivoted pair, mask; stacks that are pairs and one dense."""
    model = sieve.share_inputs_(tiny_model("qwen2"))
    statistics = sieve.calibrate(model, tiny_tokenizer(), "geography", tokens=800)
    pivoted, plain = (sieve.project(model, statistics, pivot=pivot) for pivot in (True, False))
    prefixes = [f"model.layers.{index}" for index in range(2)]
    parts = ({f"{prefixes[0]}.self_attn.qkv_proj": 12, f"{prefixes[0]}.mlp.down_proj": 12}, {
        f"{prefixes[1]}.mlp.gate_up_proj": 12, f"{prefixes[1]}.self_attn.o_proj": 8})  # fmt: skip
    masks = sieve.mask(model, None, "magnitude").only([f"{prefixes[1]}.mlp.down_proj"])
    sieve.apply_(model, pivoted.only(parts[0]), sieve.Plan(parts[0], pivoted=True))
    sieve.apply_(model, plain.only(parts[1]), parts[1])
    return sieve.apply_(model, masks, {f"{prefixes[1]}.mlp.down_proj": 36})


def run(folder: Path) -> dict[str, Any]:
    """config.json, recipe and report of the main job, without times and versions."""
    tiny_model("llama").save_pretrained(folder / "model")
    tiny_tokenizer().save_pretrained(folder / "model")
    recipe = Recipe(
        str(folder / "model"), str(task(folder)), 0.3, "ga", kept=0.6, calibration_tokens=800, rank_multiple=4, **SMALL
    )
    report = sieve.prune(recipe, folder / "out")
    config = json.loads((folder / "out" / "config.json").read_text())
    return {
        "quantization_config": config["quantization_config"],
        "report": without(report, TIMES | {"model"}),
        "files": sorted(file.name for file in (folder / "out").iterdir()),
    }


def logits(model: nn.Module) -> list[float]:
    """Of the last position, for eight tokens."""
    with torch.inference_mode():
        return model(tiny_tokens()).logits[:, -1, 3:11].double().flatten().tolist()


def stored(model: nn.Module) -> dict[str, Any]:
    """A model's tensors, its mark in config.json and its output."""
    tensors = model.state_dict()
    return {
        "tensors": {name: [list(tensor.shape), str(tensor.dtype)] for name, tensor in tensors.items()},
        "config": model.config.quantization_config.to_dict(),
        "logits": logits(model),
        "bits": digest(tensors.values()),
    }


def energy(M: torch.Tensor) -> list[float]:
    """Norm and a trace-like sum of a map, which do not depend on signs inside it."""
    count = min(M.shape)
    return [float(M.norm()), float(M[:count, :count].diagonal().sum())]


def digest(tensors) -> str:
    """SHA-256 of the bytes of tensors."""
    total = hashlib.sha256()
    for tensor in tensors:
        total.update(tensor.detach().contiguous().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def without(value: Any, names: set[str]) -> Any:
    """Nested dictionaries without some keys."""
    if isinstance(value, dict):
        return {key: without(item, names) for key, item in value.items() if key not in names}
    return [without(item, names) for item in value] if isinstance(value, list) else value


def everything() -> dict[str, Any]:
    """All results, computed here."""
    with tempfile.TemporaryDirectory() as folder:
        parts: dict[str, Any] = {"machine": machine()}
        parts["families"] = {name: family(name, Path(folder)) for name in FAMILIES}
        parts["searches"] = {name: searched(name, Path(folder)) for name in SEARCHES}
        parts["run"] = run(Path(folder))
    parts["folders"] = {name: logits(sieve.load(HERE / name)[0]) for name in FOLDERS}
    return json.loads(json.dumps(parts))


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(everything(), indent=1) + "\n")
