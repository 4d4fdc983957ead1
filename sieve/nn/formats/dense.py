"""A dense matrix: named in `config.json` where something else is said of it, as that it is a stack."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from sieve.nn.formats.base import LayerFormat


@dataclass(frozen=True)
class Dense(LayerFormat):
    """The weight as it was."""

    name: ClassVar[str] = "dense"

    @classmethod
    def summary(cls, layers: Sequence[LayerFormat]) -> str:
        return ""
