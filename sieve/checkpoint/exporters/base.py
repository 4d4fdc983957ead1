"""The interface of an exporter: each file in this folder defines an `Exporter` named EXPORTER."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def _holds_all(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> str | None:
    return None


@dataclass(frozen=True)
class Exporter:
    """A format that other tools read.

    summary: a few words for a list of formats.
    export: writes the model, which it may change, and the tokenizer to `output`, a new folder or (`writes_file`) file,
        which appears only if the export succeeds. `source` is the folder that they were loaded from.
    lacks: why the format cannot hold the model, in words that follow "cannot be exported to …: "; None: it can.
    """

    summary: str
    export: Callable[[PreTrainedModel, PreTrainedTokenizerBase, Path, Path], None]
    lacks: Callable[[PreTrainedModel, PreTrainedTokenizerBase], str | None] = _holds_all
    writes_file: bool = False
