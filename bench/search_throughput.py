"""How fast a search goes, from calibration to test: seconds a stage, candidates and tokens a second, share of the peak.

python -m bench.search_throughput [--model smollm2] [--search ga] [--folder DIR]

`--model` may be a shape, 1b, 3b or 8b as Llama 3 has them: a model with random weights, made on the device. Its answers
are chance, so the search is for half of the size. With a folder, a run that was stopped goes on.
"""

import argparse
import resource
import tempfile
import time
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import sieve
from bench.gpu.ceilings import product_flops
from bench.gpu.contestants import random_model
from bench.gpu.sizes import FULL
from sieve.models.config import EMBEDDED_MODEL
from sieve.models.matrix import DENSE, Matrix
from sieve.searchers.engine.journal import Journal
from sieve.searchers.run import SearchResult, run_search
from sieve.tasks import Task, load_task
from sieve.utils import progress

SHAPES = FULL.search.shapes
"""Configurations as of Llama 3's models, by name."""

SIDE = {"cuda": 8192, "cpu": 2048}
"""Of the matrices whose product is the peak."""
TESTED = 1000
"""Questions of the evaluation at the end."""


@dataclass
class Throughput:
    """What a run measured.

    seconds: by stage; a stage that an earlier run had finished takes the time of reading its file.
    candidates, tokens, operations: what was evaluated in this run. Tokens are those that the candidates read, padding
        excluded; operations are two for each parameter that a token went through, at the candidate's own ranks and in
        the blocks that ran, and the head for the rows that it saw; attention is left out.
    peak: operations per second of the device's best bf16 product.
    bytes: the most memory that was in use: of the device or, on a CPU, of the process.
    """

    seconds: dict[str, float] = field(default_factory=dict)
    candidates: int = 0
    tokens: int = 0
    operations: float = 0.0
    peak: float = 0.0
    bytes: int = 0

    @contextmanager
    def stage(self, name: str):
        started = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - started

    @property
    def share_of_peak(self) -> float:
        """Of the whole search: gradients, bottleneck tests and confirmation take their time, and count nothing."""
        return self.operations / self.seconds["search"] / self.peak

    def lines(self) -> list[str]:
        search = self.seconds["search"]
        return [
            *(f"{name:10} {seconds:9.2f} s" for name, seconds in self.seconds.items()),
            f"{self.candidates} candidates, {self.candidates / search:.2f} a second; "
            f"{self.tokens:,} tokens, {self.tokens / search:,.0f} a second",
            f"{self.operations / search / 1e12:.3f} TFLOP/s, {self.share_of_peak:.1%} of {self.peak / 1e12:.2f}",
            f"at most {self.bytes / 1e9:.2f} GB in use",
        ]


def of_shape(shape: Mapping[str, Any], device: torch.device, tokens: int) -> PreTrainedModel:
    """A model of random weights; `tokens` is the least size of its vocabulary."""
    return random_model(device, {**shape, "vocab_size": max(shape["vocab_size"], tokens)})


def run(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    folder: Path,
    tokens: int = 32_768,
    tested: int = TESTED,
    **options: Any,
) -> Throughput:
    """Calibrate, project, search and evaluate; what is finished is kept in the folder.

    Args: tokens: of the calibration. options: of `run_search`.
    """
    found, device = Throughput(), model.device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    # The stages, each with its own time.
    found.peak = product_flops(device, SIDE["cuda" if device.type == "cuda" else "cpu"])
    with found.stage("calibrate"):
        statistics = sieve.calibrate(model, tokenizer, task, tokens, path=folder / "calibration.safetensors")
        wait(device)
    with found.stage("project"):
        factors = sieve.project(model, statistics)
        wait(device)
    journal = folder / "journal.txt"
    known = set(_evaluations(journal))
    with found.stage("search"):
        result = run_search(model, tokenizer, factors, task, journal=journal, **options)
        wait(device)
    with found.stage("apply"):
        sieve.apply_(model, factors, result.plan)
        wait(device)
    with found.stage("test"):
        sieve.evaluate(model, tokenizer, task, task.splits()["test"][:tested])
    # What this run evaluated: the journal tells it from what an earlier one had.
    new = {key: record for key, record in _evaluations(journal).items() if key not in known}
    found.candidates = len({key.partition(":")[2] for key in new})
    found.tokens = sum(record["tokens"] for record in new.values())
    found.operations = sum(_operations(key, record, result, model) for key, record in new.items())
    found.bytes = _peak_bytes(device)
    return found


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _evaluations(path: Path) -> dict[str, dict[str, Any]]:
    """Those of a journal, by "rung:ranks"."""
    if not path.is_file():
        return {}
    with Journal(path, None) as journal:
        return {key: record for key, record in journal.records.items() if "cost" in record}


def _operations(key: str, record: Mapping[str, Any], result: SearchResult, model: PreTrainedModel) -> float:
    """Of one evaluation; see `Throughput`."""
    asked = [one for one in result.matrices.values() if one.name not in result.unpredicted]
    ranks = map(int, key.partition(":")[2].split(","))
    ordered: list[Matrix] = sorted(asked, key=lambda matrix: matrix.block)
    parameters = sum(matrix.size(rank or DENSE) for matrix, rank in zip(ordered, ranks, strict=True))
    parameters += sum(result.matrices[name].size(DENSE) for name in result.unpredicted)
    cost = record["cost"]
    ran = cost["layer_tokens"] / (cost["cells"] * model.config.num_hidden_layers)
    head = model.get_output_embeddings().weight.numel() * cost["head_rows"]
    return 2.0 * (parameters * record["tokens"] * ran + head)


def _peak_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    # Kilobytes on Linux.
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.search_throughput", description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=EMBEDDED_MODEL, help=f"a model, or one of {', '.join(SHAPES)}")
    parser.add_argument("--task", default="geography")
    parser.add_argument("--search", default="ga")
    parser.add_argument("--generations", type=int)
    parser.add_argument("--budget", type=int, help="layer-tokens")
    parser.add_argument("--kept", type=float, help="0.5 for a model of random weights")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--folder", type=Path, help="keeps what is finished")
    chosen = parser.parse_args(arguments)

    # The model: one with its weights, or a shape with random ones and the embedded model's tokenizer.
    drawn = chosen.model in SHAPES
    model, tokenizer = sieve.load_model(EMBEDDED_MODEL if drawn else chosen.model, device=chosen.device)
    if drawn:
        model = of_shape(SHAPES[chosen.model], model.device, len(tokenizer))
    with tempfile.TemporaryDirectory() as temporary, progress.shown():
        found = run(
            model, tokenizer, load_task(chosen.task), chosen.folder or Path(temporary), search=chosen.search,
            generations=chosen.generations, budget=chosen.budget, allow_no_signal=drawn,
            kept=chosen.kept or (0.5 if drawn else None),
        )  # fmt: skip
    print(*found.lines(), sep="\n")


if __name__ == "__main__":
    main()
