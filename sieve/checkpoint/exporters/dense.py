"""A plain transformers folder: low-rank pairs multiplied out, for tools that know nothing of Sieve."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sieve.checkpoint.exporters.base import Exporter
from sieve.checkpoint.multiply_out import multiply_out_, why_not_dense

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def export(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, source: Path, output: Path) -> None:
    """Write the dense model of the same map, in the model's dtype; it is as large as the original was."""
    multiply_out_(model).save_pretrained(output)
    tokenizer.save_pretrained(output)


EXPORTER = Exporter(
    "a plain transformers folder, with the pairs multiplied out", export, lambda model, _: why_not_dense(model)
)
