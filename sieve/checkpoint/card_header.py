"""The YAML header of a model card for hubs: the model's origin, task and scores."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sieve.models.config import EMBEDDED_BASE, EMBEDDED_LICENSE, EMBEDDED_MODEL
from sieve.utils.terminal import printable

if TYPE_CHECKING:
    from huggingface_hub import ModelCardData

_LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]{0,40}")
_METRICS = {"exact_match": "exact_match", "f1": "f1", "rouge_l": "rouge", "bleu": "bleu", "chrf": "chrf"}
"""The hub's names of metrics of written answers; other metrics have no name there."""


def header(report: Mapping[str, Any], pruned: bool) -> ModelCardData:
    """The facts of `report` (may be empty) for a hub. Names of local files are left out."""
    from huggingface_hub import EvalResult, ModelCardData

    source = report.get("model")
    base = _base_model(source) if isinstance(source, str) else None
    metric = _metric(report)
    result = (report.get("accuracy", {}).get("pruned") or {}).get("test")
    results = None
    if metric and result:
        name = printable(str(report["task"]))
        results = [EvalResult("text-generation", name, name, metric, round(result["value"], 4), dataset_split="test")]
    return ModelCardData(
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["sieve", *(["pruned"] if pruned else [])],
        base_model=base,
        license=_license(source) if isinstance(source, str) else None,
        metrics=[metric] if metric else None,
        model_name=f"{(base or 'model').split('/')[-1]}-{printable(str(report['task']))}" if results else None,
        eval_results=results,
    )


def _metric(report: Mapping[str, Any]) -> str | None:
    if report.get("task_type") == "multiple_choice":
        return "accuracy"
    return _METRICS.get(report.get("metric")) if report.get("task_type") == "generation" else None


def _base_model(source: str) -> str | None:
    """The hub's name of the model that was pruned; None if it was a local folder or file."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    if source == EMBEDDED_MODEL:
        return EMBEDDED_BASE
    try:
        validate_repo_id(source)
    except HFValidationError:
        return None
    return None if Path(source).exists() or source.endswith(".gguf") else source


def _license(source: str) -> str | None:
    """The license of that model, if its card is on this machine."""
    from huggingface_hub import ModelCard, try_to_load_from_cache

    if source == EMBEDDED_MODEL:
        return EMBEDDED_LICENSE
    try:
        card = Path(source) / "README.md"
        found = card if card.is_file() else try_to_load_from_cache(source, "README.md")
        license = ModelCard.load(found).data.license if isinstance(found, str | Path) else None
    except Exception:
        # The name is not a hub's, or the card is of another kind.
        return None
    return license if isinstance(license, str) and _LICENSE.fullmatch(license) else None
