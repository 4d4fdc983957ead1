"""The measured layers: matrices of well-known models, rows from one to a long prompt, kept fractions."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Model:
    """Widths of a decoder block, from the model's config.json."""

    hidden: int
    queries: int
    keys: int
    intermediate: int

    def matrices(self) -> dict[str, tuple[int, int]]:
        """(inputs, outputs) by name; k has the shape of v, and gate that of up."""
        return {
            "q": (self.hidden, self.queries),
            "k": (self.hidden, self.keys),
            "o": (self.queries, self.hidden),
            "gate": (self.hidden, self.intermediate),
            "down": (self.intermediate, self.hidden),
        }


MODELS = {
    "smollm2-135m": Model(576, 576, 192, 1536),
    "llama-3-8b": Model(4096, 4096, 1024, 14336),
    "llama-3-70b": Model(8192, 8192, 1024, 28672),
    "qwen2.5-7b": Model(3584, 3584, 512, 18944),
    "phi-4": Model(5120, 5120, 1280, 17920),
    "gemma-2-9b": Model(3584, 4096, 2048, 14336),
}
ROWS = (1, 2, 4, 8, 16, 64, 256, 1024, 2048, 8192)
KEPT = (0.05, 0.1, 0.25, 0.5, 0.75, 0.9)
MULTIPLE = 16
"""Ranks are rounded up to a multiple of this, for full tiles."""


@dataclass(frozen=True)
class Cell:
    """One layer with its number of input rows, at a kept fraction of its parameters."""

    model: str
    matrix: str
    rows: int
    kept: float
    dtype: torch.dtype

    @property
    def n(self) -> int:
        return MODELS[self.model].matrices()[self.matrix][0]

    @property
    def m(self) -> int:
        return MODELS[self.model].matrices()[self.matrix][1]

    @property
    def rank(self) -> int:
        """The rank r at which r (m + n) is the kept fraction of m n."""
        return _rank(self.kept, self.n, self.m)

    @property
    def size(self) -> int:
        """Bytes of an element."""
        return self.dtype.itemsize


def _rank(kept: float, n: int, m: int) -> int:
    return max(1, -(-round(kept * n * m / (n + m)) // MULTIPLE)) * MULTIPLE
