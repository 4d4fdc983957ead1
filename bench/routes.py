"""Every way out of Sieve, tried in a process of its own: does the model load, score the same, or is it refused clearly?

    python -m bench.routes [--folder DIR] [--only NAME]

Prints a table as Markdown, with versions. The model is SmolLM2-135M in float32 with half of its prunable parameters, in
layers as `sieve prune` makes them without a method: narrower MLPs, pivoted pairs, stacks of query, key and value. It is
made in some minutes, unless `--folder` names a folder that this command made. Scores are the log-probabilities of both
answers to 16 questions of examples/reviews.jsonl. A route whose packages are missing says so; the exit code is 1 if one
fails.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

# Nothing of Sieve is imported at the top: some routes run without it.
from bench.route_list import ROUTES, UNPROVEN, Route, own

ROOT = Path(__file__).parents[1]
PACKAGES = ("torch", "transformers", "peft", "torchao", "lm_eval", "onnx", "onnxruntime", "gguf", "vllm")


def prepare(folder: Path) -> None:
    """The pruned model in `folder`/model, the questions and its own scores beside it."""
    import sieve
    from sieve.compression.plan import Plan

    model, tokenizer = sieve.load_model("smollm2", "float32")
    model = sieve.share_inputs_(model, mlps=False)
    statistics = sieve.calibrate(model, tokenizer, "geography", tokens=16_384, method="widths")
    factors = sieve.project(model, statistics, method="widths", pivot=True)
    model = sieve.apply_(model, factors, Plan.uniform(factors.matrices(model).values(), 0.5, 8))
    sieve.save(model, tokenizer, folder / "model")
    rows = [json.loads(line) for line in (ROOT / "examples" / "reviews.jsonl").read_text().splitlines()]
    prompts = [f"Review: {row['text']}\nSentiment:" for row in rows[:16]]
    questions = {
        "prompts": [tokenizer(prompt).input_ids for prompt in prompts],
        "choices": [tokenizer(choice).input_ids[0] for choice in (" negative", " positive")],
    }
    (folder / "questions.json").write_text(json.dumps(questions))
    own(folder)


def tried(route: Route, folder: Path) -> dict[str, Any]:
    """What came of a route: `scores` and `wanted`, or `refused`; `failed` with the last line of an error."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    environment |= {"HF_MODULES_CACHE": str(folder / "modules"), **({} if route.sieve else {"SIEVE_START": "off"})}
    command = [sys.executable, "-W", "ignore", "-m", "bench.routes", "--run", route.name, "--folder", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT)
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        return {"failed": (done.stderr.strip().splitlines() or ["no output"])[-1]}
    return json.loads(lines[-1])


def judged(route: Route, found: dict[str, Any]) -> tuple[str, str, str, bool]:
    """The cells "loads", "same scores" and "clear refusal", and whether all is as it should be."""
    if "failed" in found:
        return "**no**", "–", found["failed"][:120], False
    if "refused" in found:
        told = re.search(route.refuses, found["refused"]) if route.refuses else None
        return "no", "–", f"yes: “{told[0]}”" if told else f"**not clear**: {found['refused'][:120]}", bool(told)
    worst = max(
        abs(one - other)
        for row, wanted in zip(found["scores"], found["wanted"], strict=True)
        for one, other in zip(row, wanted, strict=True)
    )
    same = worst <= route.tolerance and route.refuses is None
    return "yes", f"{'yes' if same else '**no**'}, ± {worst:.1g}", "–", same


def table(folder: Path, only: str | None) -> bool:
    """Print the table; whether no route failed."""
    fine = True
    print("| route | loads | same scores | clear refusal |\n| --- | --- | --- | --- |", flush=True)
    for route in ROUTES:
        if only is not None and only not in route.name:
            continue
        missing = [package for package in route.needs if find_spec(package) is None]
        if missing:
            print(f"| {route.name} | not tried here: needs {', '.join(missing)} | | |", flush=True)
            continue
        loads, same, refusal, right = judged(route, tried(route, folder))
        fine &= right
        print(f"| {route.name} | {loads} | {same} | {refusal} |", flush=True)
    for name, why in UNPROVEN.items():
        if only is None:
            print(f"| {name} | unproven: {why} | | |")
    print(f"\nPython {sys.version.split()[0]}, {', '.join(filter(None, map(_version, PACKAGES)))}.")
    return fine


def _version(package: str) -> str | None:
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return None


class _Hidden:
    """A finder that hides Sieve, as where it is not installed."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name.partition(".")[0] in ("sieve", "sieve_kernels"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def run(name: str, folder: Path) -> None:
    """One route in this process; what came of it is the last line that is printed."""
    route = next(one for one in ROUTES if one.name == name)
    if not route.sieve:
        sys.meta_path.insert(0, _Hidden())
    try:
        found = route.function(folder)
    except (OSError, ValueError) as error:
        if route.refuses is None:
            raise
        found = {"refused": str(error)}
    print(json.dumps(found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--folder", type=Path, help="where the model is, or is made and kept")
    parser.add_argument("--only", help="routes whose name contains this")
    parser.add_argument("--run", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        run(options.run, options.folder)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "questions.json").is_file():
            prepare(folder)
        sys.exit(0 if table(folder.absolute(), options.only) else 1)


if __name__ == "__main__":
    main()
