"""What evaluations cost, against what the plain evaluation of the same candidates would have cost.

The unit is the layer-token: one token through one decoder block. Plain means that every sequence of every example (each
prompt with each choice; a prompt with its right answer, and with the one that is written) goes through every block on
its own, without padding.
"""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Spent:
    """One evaluation: one candidate on one rung of the examples.

    layer_tokens: cells of the blocks that ran, padding included. cells: of one whole block. head_rows: rows of logits.
    copies: how many places of a candidate batch count on this candidate: its own and, of a short batch, the idle ones.
    """

    layer_tokens: int
    cells: int
    head_rows: int
    copies: int = 1


@dataclass
class Cost:
    """Sums over a search. Within the ratio, plain + overhead = spent + prefix + layers + racing, exactly.

    A search that was interrupted and resumed has the cost of one that was not.

    blocks: L. head: what one row of logits costs, in layer-tokens.
    plain, padded: per rung, tokens of its sequences, and cells if they ran in batches of arbitrary order.
    written: tokens of all answers that candidates wrote, on the rungs that they were asked.
    """

    blocks: int
    head: float
    plain: list[int]
    padded: list[int]
    candidates: set[Any] = field(default_factory=set)
    evaluations: int = 0
    spent: int = 0
    overhead: int = 0
    prefix: int = 0
    layers: int = 0
    logits: float = 0.0
    padding: int = 0
    journal: int = 0
    screened: int = 0
    written: int = 0
    _asked: int = 0

    def evaluated(self, candidate: Any, rung: int, spent: Spent, written: int = 0) -> None:
        """One evaluation of `rung`; tokens of answers that were written would have been so plainly, too."""
        self.candidates.add(candidate)
        self.evaluations += 1
        layer_tokens, head_rows = spent.layer_tokens * spent.copies, spent.head_rows * spent.copies
        self.spent += layer_tokens
        self.written += written
        plain, whole = self.plain[rung] + written, spent.cells * self.blocks
        self.prefix += plain * self.blocks - whole
        self.layers += whole - layer_tokens
        self.logits += (plain - head_rows) * self.head
        self.padding += (self.padded[rung] - self.plain[rung]) * self.blocks
        self._asked += plain * self.blocks

    def asked_again(self, rung: int) -> None:
        """An evaluation that was there already."""
        self.journal += self.plain[rung] * self.blocks

    def probed(self, layer_tokens: int) -> None:
        """Work that no plain search does, such as the surrogate's gradients."""
        self.overhead += layer_tokens
        self.spent += layer_tokens

    @property
    def plain_layer_tokens(self) -> int:
        """Every candidate on every example, plainly; of answers, those that were written."""
        return (len(self.candidates) * sum(self.plain) + self.written) * self.blocks

    @property
    def racing(self) -> int:
        """Examples that candidates were not asked because they had been ruled out."""
        return self.plain_layer_tokens - self._asked

    def summary(self) -> dict[str, Any]:
        """For `report.json`. Lines outside the ratio say what would have come on top without the shortcut."""
        return {
            "candidates": len(self.candidates),
            "evaluations": self.evaluations,
            "layer_tokens_plain": self.plain_layer_tokens,
            "layer_tokens_spent": self.spent,
            "layer_tokens_overhead": self.overhead,
            "cost_ratio": self.plain_layer_tokens / self.spent if self.spent else None,
            "saved_by": {
                "prefix": self.prefix,
                "layers": self.layers,
                "racing": self.racing,
                "logits": round(self.logits),
                "padding": self.padding,
                "surrogate": self.screened * sum(self.plain) * self.blocks,
                "journal": self.journal,
            },
        }
