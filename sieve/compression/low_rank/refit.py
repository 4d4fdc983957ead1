"""Refitting a finished plan, matrix by matrix in the order of execution, to inputs as the pruned model has them.

Each pair of a plan was fitted to the inputs x of the dense model, but in the pruned one it gets other inputs x', which
carry the errors of all earlier pairs. With the dense outputs W x as targets (DESIGN 2.3),

    Σ_t |W x_t - M x'_t|² + λ |W - M|²

is least over all maps at B* = W S, S = (C_xx' + λ I) (C_x'x' + λ I)⁻¹. The ridge pulls to W and not to zero: what the
data do not show stays as it is. The pair is the best map of its rank to the outputs B* x', without λ: what hardly
occurs is to take no rank. x' depends on all ranks upstream, so this is no database for a search: it follows one.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from dataclasses import replace as replace_fields
from functools import partial

import torch
from torch import nn
from transformers import PreTrainedModel

from sieve.calibration.collect import HELD_BACK
from sieve.calibration.gradients import column_basis
from sieve.calibration.statistics import Statistics
from sieve.calibration.text import Sample, batches
from sieve.compression.low_rank.elastic import elastic_linear
from sieve.compression.low_rank.factors import Factors
from sieve.compression.low_rank.loss_aware import loss_aware
from sieve.compression.low_rank.pair import FactorPair
from sieve.compression.low_rank.paired_states import PairedStates
from sieve.compression.low_rank.problem import Solution, balance
from sieve.compression.plan import Plan
from sieve.compression.structured.channel_pair import ChannelPair, refitted_channels
from sieve.errors import InputError, NumericsError
from sieve.models.linears import weight_of
from sieve.models.loading import evaluating
from sieve.models.numerics import double
from sieve.models.prunable_model import PrunableModel
from sieve.nn.stacked import member_out_features
from sieve.utils import progress
from sieve_kernels import cross_gram_, gram_

RIDGE = 1.0
"""λ as a share of the mean energy of an input channel: large, since a small one overfits few tokens."""

RIDGES = (10.0, 1.0, 0.1, 0.01)
"""Candidates where λ is to be chosen."""


@torch.no_grad()
def refit(
    model: PreTrainedModel | PrunableModel,
    factors: Factors,
    plan: Mapping[str, int | str],
    statistics: Statistics,
    ridge: float | None = RIDGE,
    batch_tokens: int = 4096,
) -> Factors:
    """New pairs for the matrices that `plan` prunes, for `sieve.apply_` with that plan.

    Both models run block by block side by side: besides the model itself, memory holds their hidden states of all
    calibration tokens, what the matrices of one block read of the dense one's and attention returns in the pruned one,
    and the Gram matrices of one input. A block costs a forward pass of the dense model and less than two of the pruned
    one.

    Args:
        model: the dense model; not changed.
        factors: that the plan was made with. If they are loss-aware, so are the new pairs.
        plan: matrix name → rank or "dense".
        statistics: those that `factors` are of; their calibration examples, held-back ones included, are run again.
        ridge: λ > 0 as a share of the mean energy of an input channel. None: each matrix takes the one of `RIDGES` with
            the least error on held-back calibration examples, and keeps its pair where none is better than that.

    Returns: `Factors` of the pruned matrices alone, each of exactly its rank in the plan. A search confirmed the plan
        with the pairs that it had, not with these: `sieve.prune` with `refit` confirms them, too.

    Raises: InputError for a plan or factors of another model or a ridge that is not positive, NumericsError naming the
        matrix whose inputs are not finite.

    Example:
        >>> plan = sieve.search(model, tokenizer, factors, task)
        >>> pruned = sieve.apply_(model, sieve.refit(model, factors, plan, statistics), plan)
    """
    if ridge is not None and not 0 < ridge < math.inf:
        raise InputError(f"the ridge of a refit must be positive and finite, got {ridge}")
    plan = Plan(plan)
    model = PrunableModel.of(model)
    matrices = factors.matrices(model, plan)
    plan.check(matrices)
    factors.check(matrices, plan)
    # The examples to fit by come first, those that choose the ridge behind them.
    samples, held = _samples(statistics, ridge is None)
    data = batches(samples, batch_tokens)
    first_held = len(data)  # the batches from here on choose the ridge
    data += batches(held, batch_tokens) if held else []
    ranks, groups = plan.ranks(), model.input_groups
    heights = member_out_features(model.model) if math.isinf(factors.ridge) else {}

    def fit(name: str, layer: nn.Module, seen: tuple[_Seen, _Seen]) -> FactorPair:
        pair = _pair(name, layer, ranks[name], seen, factors, statistics, ridge, heights.get(name))
        advance(1)
        return pair

    # Block by block: what leaves a refitted block enters the next.
    pairs: dict[str, FactorPair] = {}
    with (
        evaluating(model.model),
        progress.bar("refit", len(ranks), "matrices") as advance,
        PairedStates(model.model, data) as states,
    ):
        for index in range(len(states)):
            inside = {name: rank for name, rank in ranks.items() if matrices[name].block == index}
            pairs |= _refit_block(model, index, inside, groups, factors, states, first_held, fit)
    return Factors(pairs, factors.method, factors.pivoted, factors.ridge, factors.shrinkage)


def _refit_block(
    model: PrunableModel,
    index: int,
    ranks: Mapping[str, int],
    groups: list[list[str]],
    factors: Factors,
    states: PairedStates,
    first_held: int,
    fit: Callable[[str, nn.Module, "tuple[_Seen, _Seen]"], FactorPair],
) -> dict[str, FactorPair]:
    """New pairs of the matrices that `ranks` names, all in block `index`, fitted in the order of execution."""
    layers = {name: model.layer(name) for name in ranks}
    elastic = {name: elastic_linear(layer, factors[name]) for name, layer in layers.items()}
    pairs: dict[str, FactorPair] = {}

    def set_pruned(pruned: bool) -> None:
        for name, layer in elastic.items():
            layer.rank = ranks[name] if pruned else None

    with model.replaced(elastic):
        asked = [group for group in groups if any(name in ranks for name in group)]
        states.enter_block(index, [model.layer(group[0]) for group in asked], set_pruned)
        for group in asked:
            members = [name for name in group if name in ranks]
            centred = any(factors[name].mean is not None for name in members)
            seen = _look(states, model.layer(group[0]), first_held, centred)
            # Each new pair takes its place at once: the matrices behind it are fitted to what it makes of the inputs.
            for name in members:
                pairs[name] = fit(name, layers[name], seen)
                elastic[name] = elastic_linear(layers[name], pairs[name])
                model.replace(name, elastic[name])
        states.leave_block()
    return pairs


def _samples(statistics: Statistics, choose: bool) -> tuple[list[Sample], list[Sample]]:
    """The examples to fit by, and those to choose the ridge by."""
    samples, held = statistics.samples, statistics.held_back
    if not samples:
        raise InputError("the statistics hold no calibration examples to refit by: calibrate again")
    if not choose:
        return [*samples, *held], []
    if held:
        return samples, held
    if len(samples) < 2:
        raise InputError("a refit holds examples back and there is only one: raise --calibration-tokens")
    count = max(1, len(samples) // HELD_BACK)
    return samples[:-count], samples[-count:]


@dataclass
class _Seen:
    """Sums over the tokens of one input, x in the dense model and x' in the pruned one; float32.

    gram: C_x'x', cross: C_xx' [n, n]; dense: Σ x, pruned: Σ x' [n], zero where no pair asks for them; tokens: how many.
    """

    gram: torch.Tensor
    cross: torch.Tensor
    dense: torch.Tensor
    pruned: torch.Tensor
    tokens: int = 0

    def __add__(self, other: "_Seen") -> "_Seen":
        return _Seen(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(self)))

    def add(self, dense: torch.Tensor, pruned: torch.Tensor, weight: torch.Tensor | None, centred: bool) -> None:
        gram_(self.gram, pruned, weight)
        cross_gram_(self.cross, dense, pruned, weight)
        if centred:
            self.dense += (dense if weight is None else dense[weight]).sum(0, dtype=torch.float32)
            self.pruned += (pruned if weight is None else pruned[weight]).sum(0, dtype=torch.float32)
        self.tokens += len(dense) if weight is None else int(weight.sum())

    def grams(self, centred: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """C_x'x' and C_xx' in float64, about the means if `centred`."""
        gram, cross = double(self.gram), double(self.cross)
        if not centred or not self.tokens:
            return gram, cross
        dense, pruned = double(self.dense), double(self.pruned) / self.tokens
        return gram - self.tokens * torch.outer(pruned, pruned), cross - torch.outer(dense, pruned)


def _look(states: PairedStates, layer: nn.Module, first_held: int, centred: bool) -> tuple[_Seen, _Seen]:
    """At the inputs of `layer`: on the examples to fit by, and on those held back."""
    seen: tuple[_Seen, ...] = ()
    for number, (dense, pruned, weight) in enumerate(states.inputs(layer)):
        if not seen:
            n = dense.shape[-1]
            zeros = partial(torch.zeros, dtype=torch.float32, device=dense.device)
            seen = tuple(_Seen(zeros(n, n), zeros(n, n), zeros(n), zeros(n)) for _ in range(2))
        seen[number >= first_held].add(dense, pruned, weight, centred)
    return seen


def _pair(
    name: str,
    layer: nn.Module,
    rank: int,
    seen: tuple[_Seen, _Seen],
    factors: Factors,
    statistics: Statistics,
    ridge: float | None,
    heights: list[int] | None,
) -> FactorPair:
    weight, source, old, whole = weight_of(layer), statistics.sources[name], factors[name], seen[0] + seen[1]
    W, centred = double(weight), old.mean is not None
    gram, cross = whole.grams(centred)
    gradient = double(statistics.grams[source.gradient]) if source.gradient else gram.new_zeros(1, 1)
    if not (gram.isfinite().all() and cross.isfinite().all()):
        raise NumericsError(
            f"the inputs of {name} are not finite in the pruned model: keep more of the matrices before"
        )
    if not seen[0].gram.diagonal().mean() > 0:
        return old  # nothing comes in: nothing to learn
    means = (whole.pruned / whole.tokens, (W @ (double(whole.dense) / whole.tokens)).float()) if centred else ()
    if isinstance(old, ChannelPair):
        return refitted_channels(old, W, gram, cross, rank, *means)
    # Members of a stack have equal weight, however large their outputs are.
    scale = balance(W, gram, "input", heights) if heights else W.new_ones(len(W), 1)
    target = scale * W
    # The ridge with the least error on held-back examples; the old pair where that is better than any.
    if ridge is None:
        fit, held = seen[0].grams(centred), seen[1].grams(centred)
        A, B = (double(factor) for factor in old.slice(rank))
        errors = {None: held_back_error(target, A, scale * B, *held, gradient, factors.ridge)}
        for candidate in RIDGES:
            A, B, _ = refitted(target, *fit, gradient, factors.ridge, candidate, seen[0].tokens)
            errors[candidate] = held_back_error(target, A[:rank], B[:, :rank], *held, gradient, factors.ridge)
        ridge = min(
            errors, key=lambda candidate: errors[candidate] if errors[candidate] == errors[candidate] else math.inf
        )
        if ridge is None:
            return replace_fields(old, A=old.A[:rank], B=old.B[:, :rank])
    # The pair of that ridge, fitted on all examples.
    A, B, energy = refitted(target, gram, cross, gradient, factors.ridge, ridge, whole.tokens)
    A, B = A[:rank].to(weight, copy=True), (B / scale)[:, :rank].to(weight, copy=True)
    return FactorPair(A, B, energy.cpu(), None, *means)


def held_back_error(
    W: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    gram: torch.Tensor,
    cross: torch.Tensor,
    gradient: torch.Tensor,
    loss_ridge: float,
) -> float:
    """Σ |W x - B A x'|² less Σ |W x|², which no pair changes; with gradients, as `loss_aware` measures it.

    All float64; gram and cross: C_x'x' and C_xx' [n, n] of the tokens that count.
    """
    mean = gradient.diagonal().mean()
    Q = None
    if W.shape[0] > W.shape[1]:
        Q, W = column_basis(W)
        B = Q.T @ B
    M = B @ A
    E = M @ gram @ M.T - 2 * M @ cross.T @ W.T
    if math.isinf(loss_ridge) or not mean > 0:
        return float(E.trace())
    return float((E * gradient).sum() / mean + loss_ridge * E.trace())


def refitted(
    W: torch.Tensor,
    gram: torch.Tensor,
    cross: torch.Tensor,
    gradient: torch.Tensor,
    loss_ridge: float,
    ridge: float,
    tokens: int,
) -> Solution:
    """A good map of every rank from x' to W x, as one nested pair; see the head of this file.

    Args:
        W: [m, n] float64. gram: C_x'x' = Σ x' x'ᵀ, cross: C_xx' = Σ x x'ᵀ [n, n] float64, of so many tokens.
        gradient, loss_ridge: as for `loss_aware`, whose measure of an output error then replaces the square; an
            infinite loss_ridge leaves it out.
        ridge: λ as a share of the mean energy of a channel; no less than the resolution of float32 sums.
    """
    n = len(gram)
    eye = torch.eye(n, dtype=gram.dtype, device=gram.device)
    size = max(ridge, n * torch.finfo(torch.float32).eps) * gram.diagonal().mean()
    gram = (gram + gram.T) / 2
    Q = None
    if W.shape[0] > n:  # B* has the range of W, in whose coordinates the gradients are
        Q, W = column_basis(W)
    best = torch.cholesky_solve((W @ (cross + size * eye)).T, torch.linalg.cholesky(gram + size * eye)).T
    A, B, energy = loss_aware(best, gram, "input", tokens, gradient, loss_ridge)
    return A, B if Q is None else Q @ B, energy
