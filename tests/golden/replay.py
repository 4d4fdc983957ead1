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
from sieve.evaluation.predict import predict
from sieve.run.recipe import Recipe
from sieve.searchers.run import run_search
from tests.tiny_models import tiny_model, tiny_tokenizer, tiny_tokens

HERE = Path(__file__).parent
GOLDEN = HERE / "golden.json"
FOLDERS = ("pairs", "pivoted", "masks", "shared", "mixed")  # mixed is of version 2, the others of version 1
FAMILIES = ("llama", "gpt2", "phi3", "gemma")
ANIMALS = ["ant", "bee", "cat", "dog", "eel", "fox", "gnu", "hen"]
LEGS = """\
name: legs
type: multiple_choice
data: legs.jsonl
prompt: "Word {number}: {animal}. Legs:"
choices: [" few", " many"]
answer: label
"""
ECHO = """\
name: echo
type: multiple_choice
data: echo.jsonl
prompt: "Word {number}: {animal}. Echo:"
choices: [" ab", " ba", " cd", " ef"]
answer: label
"""
SMALL = {"population": 4, "offspring": 6, "generations": 2, "bottlenecks": 2}
# By name: the searcher and its options. For a given size the allocation has one candidate; with a tolerance, several.
SEARCHES = {
    "uniform": ("uniform", {"kept": 0.6}),
    "budget": ("budget", {"tolerance": 0.3, "bottlenecks": 2}),
    "ga": ("ga", {"kept": 0.6, **SMALL}),
    "pareto": ("pareto", {"kept": 0.6, **SMALL}),
    "ga with a tolerance": ("ga", {"tolerance": 0.3, **SMALL}),
}
RUNS = {
    "run": {"tolerance": 0.3, "search": "ga", "kept": 0.6, **SMALL},
    "refitted run": {"tolerance": 0.35, "refit": True},
    "refitted run of a size": {"tolerance": 0.3, "refit": True, "search": "ga", "kept": 0.6, **SMALL},
}
ECHOING = ("ga with a tolerance", "refitted run", "refitted run of a size")
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


def legs(folder: Path) -> Path:
    """A task of which the tiny Llama, pruned or not, knows nothing."""
    return _write_task(folder / "legs.yaml", LEGS, [i * i // 3 % 2 for i in range(160)])


def echo(folder: Path) -> Path:
    """A task whose right answers are those of the dense tiny Llama, so that a smaller model scores less."""
    path = _write_task(folder / "echo.yaml", ECHO, [0] * 160)
    rows = [json.loads(line) for line in path.with_suffix(".jsonl").read_text().splitlines()]
    answers = predict(tiny_model("llama"), tiny_tokenizer(), str(path), rows)
    return _write_task(path, ECHO, [answer.index for answer in answers])


def _write_task(path: Path, text: str, labels: list[int]) -> Path:
    rows = [{"number": i, "animal": ANIMALS[i % 8], "label": label} for i, label in enumerate(labels)]
    path.with_suffix(".jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path.write_text(text)
    return path


def task(name: str, folder: Path) -> Path:
    """The task of a search or a run."""
    return echo(folder) if name in ECHOING else legs(folder)


def family(name: str, folder: Path) -> dict[str, Any]:
    """Factors, masks, and models pruned by them, of one architecture."""
    model, tokenizer, asked = tiny_model(name), tiny_tokenizer(), legs(folder)
    result: dict[str, Any] = {"dense": logits(model)}
    for method in ("output_aligned", "loss_aware"):
        statistics = sieve.calibrate(model, tokenizer, asked, tokens=800, method=method)
        factors = sieve.project(model, statistics, method)
        result[method] = {
            "maps": {key: energy(pair.B.double() @ pair.A.double()) for key, pair in factors.items()},
            "bits": digest(tensor for pair in factors.values() for tensor in (pair.A, pair.B)),
        }
    plan = sieve.Plan.uniform(factors.matrices(model).values(), 0.5, 4)
    statistics = sieve.calibrate(model, tokenizer, asked, tokens=800, method="wanda")
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
    """The plan of a search, all candidates that it scored, and its journal without the header."""
    model, tokenizer, asked = tiny_model("llama"), tiny_tokenizer(), task(name, folder)
    factors = sieve.project(model, sieve.calibrate(model, tokenizer, asked, tokens=800))
    searcher, options = SEARCHES[name]
    journal = folder / f"{name}.txt"
    found = run_search(model, tokenizer, factors, asked, search=searcher, rank_multiple=4, journal=journal, **options)
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


def run(name: str, folder: Path) -> dict[str, Any]:
    """config.json, report and output of a run of `sieve.prune`, without times and versions."""
    tiny_model("llama").save_pretrained(folder / "model")
    tiny_tokenizer().save_pretrained(folder / "model")
    recipe = Recipe(
        str(folder / "model"), str(task(name, folder)), calibration_tokens=800, rank_multiple=4, **RUNS[name]
    )
    output = folder / name
    report = sieve.prune(recipe, output)
    config = json.loads((output / "config.json").read_text())
    return {
        "quantization_config": config["quantization_config"],
        "report": without(report, TIMES | {"model"}),
        "files": sorted(file.name for file in output.iterdir()),
        "logits": logits(sieve.load(output)[0]),
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
        parts |= {name: run(name, Path(folder)) for name in RUNS}
    parts["folders"] = {name: logits(sieve.load(HERE / name)[0]) for name in FOLDERS}
    return json.loads(json.dumps(parts))


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(everything(), indent=1) + "\n")
