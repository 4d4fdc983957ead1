"""Trackers of experiments: send the numbers that a run measures to trackio, MLflow or TensorBoard."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sieve.errors import InputError
from sieve.utils import progress
from sieve.utils.messages import shorten

TRACKERS = ("mlflow", "tensorboard", "trackio")
PROJECT = "sieve"

_Log = Callable[[Mapping[str, float], "int | None"], None]
# The function that takes numbers, and the one that ends the run.
_Opened = tuple[_Log, Callable[[], None]]


def check_tracker(name: str) -> None:
    """InputError for a tracker that is unknown or not installed."""
    if name not in TRACKERS:
        raise InputError(f"unknown tracker {shorten(name)}: choose one of {', '.join(TRACKERS)}")
    if importlib.util.find_spec(name) is None:
        raise InputError(f"{name} is not installed; run: pip install {name}")


@contextmanager
def tracked(name: str, run: str, settings: Mapping[str, Any] | None = None) -> Iterator[None]:
    """Inside the block the numbers of the search, of healing and of the result go to a tracker.

    Args:
        name: "mlflow", "tensorboard" (event files in `runs/tensorboard/RUN`) or "trackio".
        run: what the run is called there.
        settings: options of the run, such as a recipe.

    Raises: InputError where the tracker is unknown or not installed.

    Example:
        >>> with tracked("tensorboard", "mine"):
        ...     sieve.prune(recipe, "runs/mine")
    """
    check_tracker(name)
    opened = {"mlflow": _mlflow, "tensorboard": _tensorboard, "trackio": _trackio}[name]
    log, close = opened(run, {key: value for key, value in (settings or {}).items() if value is not None})
    steps: dict[str, int] = {}

    def listen(event: progress.Event) -> None:
        if event.kind == "values":
            for key in event.values:
                steps[key] = steps.get(key, -1) + 1 if event.step is None else event.step
            log(event.values, max((steps[key] for key in event.values), default=0))

    try:
        with progress.listening(listen):
            yield
    finally:
        close()


def _mlflow(run: str, settings: dict[str, Any]) -> _Opened:
    import mlflow

    mlflow.set_experiment(PROJECT)
    mlflow.start_run(run_name=run)
    # The server refuses longer values.
    mlflow.log_params({key: str(value)[:500] for key, value in settings.items()})
    return lambda values, step: mlflow.log_metrics(dict(values), step=step), mlflow.end_run


def _tensorboard(run: str, settings: dict[str, Any]) -> _Opened:
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(Path("runs") / "tensorboard" / f"{Path(run).name}-{time.strftime('%Y%m%d-%H%M%S')}"))
    writer.add_text("recipe", "\n".join(f"    {key}: {value}" for key, value in settings.items()))

    def log(values: Mapping[str, float], step: int | None) -> None:
        for key, value in values.items():
            writer.add_scalar(key, value, step)

    return log, writer.close


def _trackio(run: str, settings: dict[str, Any]) -> _Opened:
    import trackio

    trackio.init(project=PROJECT, name=run, config=settings)
    return lambda values, step: trackio.log(dict(values), step=step), trackio.finish
