"""One matrix and what calibration knows of it: what a projection is given."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch

from sieve.calibration.statistics import Statistics
from sieve.errors import InputError, NumericsError
from sieve.models.numerics import double

Solution = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""A [k, n], B [m, k] best first, energy [k] of the outputs in each direction, k = min(m, n); float64."""


@dataclass(frozen=True)
class Problem:
    """In float64.

    W: [m, n]. gram: C [n, n] of the inputs (side "input") or C_y [m, m] of the bias-free outputs (side "output").
    tokens: how many rows were summed.
    magnitude: [n], mean |x| of each input channel.
    gradient: [k, k] of the loss's gradients, k = min(m, n), in the coordinates of `column_basis(W)` where m > n; None
        where none were measured.
    ridge: of the loss-aware projection.
    """

    W: torch.Tensor
    gram: torch.Tensor
    side: Literal["input", "output"]
    tokens: int
    magnitude: torch.Tensor | None = None
    gradient: torch.Tensor | None = None
    ridge: float = math.inf

    @property
    def output_gram(self) -> torch.Tensor:
        """C_y = W C Wᵀ [m, m]."""
        return self.W @ self.gram @ self.W.T if self.side == "input" else self.gram


def problem_of(
    name: str,
    weight: torch.Tensor,
    statistics: Statistics,
    ridge: float = math.inf,
    shrinkage: float = 0.0,
    prior: Statistics | None = None,
    centred: bool = False,
) -> Problem:
    """The problem of one matrix.

    shrinkage: share of the prior in the Gram matrix. prior: statistics of other data, the same in kind; None means
        diag(C). See `sieve.compression.low_rank.shrinkage`.
    centred: Gram matrices of what inputs and outputs are beyond their means.

    Raises: NumericsError naming the matrix whose weights or statistics are not finite.
    """
    source = statistics.sources[name]
    W, gram = double(weight), double(statistics.grams[source.gram])
    sums = double(statistics.sums[source.inputs]) if source.inputs in statistics.sums else None
    gradient = double(statistics.grams[source.gradient]) if source.gradient else None
    if not all(tensor.isfinite().all() for tensor in (W, gram, sums, gradient) if tensor is not None):
        raise NumericsError(f"the weights or statistics of {name} hold NaN or infinity: check the model")
    tokens = statistics.tokens
    if centred:
        gram, sums, tokens = _centred(name, W, gram, source.side, sums, tokens)
    if shrinkage:
        gram = (1 - shrinkage) * gram + shrinkage * _prior(name, W, gram, sums, statistics, prior)
    magnitude = None if sums is None else sums[1] / max(statistics.tokens, 1)
    return Problem(W, gram, source.side, tokens, magnitude, gradient, ridge)


def balanced(problem: Problem, heights: Sequence[int]) -> tuple[Problem, torch.Tensor]:
    """The problem of a stack with the outputs of its members at equal energy, and the scale [m, 1] that makes it so."""
    scale = balance(problem.W, problem.gram, problem.side, heights)
    gram = problem.gram if problem.side == "input" else scale * problem.gram * scale.T
    return replace(problem, W=scale * problem.W, gram=gram), scale


def balance(W: torch.Tensor, gram: torch.Tensor, side: str, heights: Sequence[int]) -> torch.Tensor:
    """Factors for the outputs of a stack [m, 1] that give its members, of so many rows each, equal weight.

    gram: of inputs or of outputs, as `side` says. A member without output is left as it is.
    """
    rows = ((W @ gram) * W).sum(1) if side == "input" else gram.diagonal()
    energy = torch.stack([member.sum() for member in rows.split(list(heights))])
    level = energy.sum() / (energy > 0).sum().clamp(min=1)
    scale = torch.where(energy > 0, (level / energy).sqrt(), 1.0)
    return scale.repeat_interleave(torch.tensor(heights, device=W.device))[:, None]


def _centred(
    name: str, W: torch.Tensor, gram: torch.Tensor, side: str, sums: torch.Tensor | None, tokens: int
) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Gram matrix, sums and number of independent rows of x - mean x, or of W (x - mean x)."""
    if sums is None:
        raise InputError(f"the statistics hold no sums of the inputs of {name}, and so no means: calibrate again")
    mean = sums[0] / max(tokens, 1)
    of_rows = mean if side == "input" else W @ mean
    squares = (sums[2] - tokens * mean.square()).clamp(min=0)
    return gram - tokens * torch.outer(of_rows, of_rows), torch.stack([0 * mean, sums[1], squares]), tokens - 1


def _prior(
    name: str,
    W: torch.Tensor,
    gram: torch.Tensor,
    sums: torch.Tensor | None,
    statistics: Statistics,
    prior: Statistics | None,
) -> torch.Tensor:
    """What the Gram matrix is shrunk toward, of its size."""
    source = statistics.sources[name]
    if prior is not None:
        other = prior.sources.get(name)
        if other is None or (other.side, other.gram) != (source.side, source.gram):
            raise InputError(
                f"the prior holds no Gram matrix of the {source.side}s of {name}: calibrate it with the same method"
            )
        general = double(prior.grams[other.gram])
        if not general.isfinite().all():
            raise NumericsError(f"the prior's statistics of {name} hold NaN or infinity: check the model")
        return general * (statistics.tokens / max(prior.tokens, 1))
    if source.side == "input":
        return torch.diag(gram.diagonal())
    if sums is None:
        raise InputError("statistics of outputs can only be shrunk with the sums of inputs: calibrate again")
    return W * sums[2] @ W.T
