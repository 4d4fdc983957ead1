"""Refitting a finished plan, matrix by matrix in the order of execution, to inputs as the pruned model has them.

Each pair of a plan was fitted to the inputs x of the dense model, but in the pruned one it gets other inputs x', which
carry the errors of all earlier pairs. With the dense outputs W x as targets (DESIGN 2.3),

    Σ_t |W x_t - M x'_t|² + λ |W - M|²

is least over all maps at B* = W S, S = (C_xx' + λ I) (C_x'x' + λ I)⁻¹, and over those of rank r at the best map of that
rank to B* on inputs of Gram matrix C_x'x' + λ I. The ridge pulls to W and not to zero: what the data do not show stays
as it is. x' depends on all ranks upstream, so this is no database for a search: it follows one.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn
from transformers import PreTrainedModel

from sieve import progress
from sieve.calibration import Statistics
from sieve.calibration.collect import readers_of_one_input
from sieve.calibration.gradients import column_basis
from sieve.calibration.text import batches
from sieve.errors import InputError, NumericsError
from sieve.matrices import decoder_blocks, prunable, replace, weight_of
from sieve.models import evaluating
from sieve.plan import Plan
from sieve.projections.factors import FactorPair, Factors, slices_of
from sieve.projections.loss_aware import loss_aware
from sieve.projections.problem import Solution, double
from sieve.projections.walk import Turn, Walk
from sieve_kernels import cross_gram_, gram_

RIDGE = 0.01
"""λ as a share of the mean energy of an input channel."""


@torch.no_grad()
def refit(
    model: PreTrainedModel,
    factors: Factors,
    plan: Mapping[str, int | str],
    statistics: Statistics,
    ridge: float = RIDGE,
    batch_tokens: int = 4096,
) -> Factors:
    """New pairs for the matrices that `plan` prunes, for `sieve.apply_` with that plan.

    Both models run block by block side by side: besides the model itself, memory holds their hidden states of all
    calibration tokens and the Gram matrices of one input. A block costs little more than two forward passes of each.

    Args:
        model: the dense model; not changed.
        factors: that the plan was made with. If they are loss-aware, so are the new pairs.
        plan: matrix name → rank or "dense".
        statistics: those that `factors` are of; their calibration examples, held-back ones included, are run again.
        ridge: λ > 0 as a share of the mean energy of an input channel.

    Returns: `Factors` of the pruned matrices alone, each of exactly its rank in the plan.

    Raises: InputError for a plan or factors of another model or a ridge that is not positive, NumericsError naming the
        matrix whose inputs are not finite.

    Example:
        >>> plan = sieve.search(model, tokenizer, factors, task)
        >>> pruned = sieve.apply_(model, sieve.refit(model, factors, plan, statistics), plan)
    """
    if not 0 < ridge < math.inf:
        raise InputError(f"the ridge of a refit must be positive and finite, got {ridge}")
    plan = Plan(plan)
    matrices = prunable(model, plan.pivoted)
    plan.check(matrices)
    factors.check(matrices, plan)
    data = batches([*statistics.texts, *statistics.held_back], batch_tokens) if statistics.texts else []
    if not data:
        raise InputError("the statistics hold no calibration examples to refit by: calibrate again")
    ranks = plan.ranks()
    groups = readers_of_one_input(model, matrices, data[0])
    pairs: dict[str, FactorPair] = {}
    with evaluating(model), progress.bar("refit", len(ranks), "matrices") as advance:
        walk = Walk(model, data)
        for index in range(len(decoder_blocks(model)[1])):
            inside = {name: rank for name, rank in ranks.items() if matrices[name].block == index}
            layers = {name: model.get_submodule(name) for name in inside}
            turned = {name: slices_of(layer, factors[name]) for name, layer in layers.items()}

            def turn(pruned: bool, turned: dict[str, nn.Module] = turned, inside: dict[str, int] = inside) -> None:
                for name, layer in turned.items():
                    layer.rank = inside[name] if pruned else None

            try:
                for name, layer in turned.items():
                    replace(model, name, layer)
                for group in groups:
                    members = [name for name in group if name in inside]
                    if not members:
                        continue
                    seen = _look(walk, index, model.get_submodule(group[0]), turn)
                    for name in members:
                        pairs[name] = _pair(name, layers[name], inside[name], seen, factors, statistics, ridge)
                        turned[name] = slices_of(layers[name], pairs[name])
                        replace(model, name, turned[name])
                        advance(1)
                walk.leave(index, turn)
            finally:
                for name, layer in layers.items():
                    replace(model, name, layer)
    return Factors(pairs, factors.method, factors.pivoted, factors.ridge, factors.shrinkage)


@dataclass
class _Seen:
    """Sums over the tokens of one input, x in the dense model and x' in the pruned one.

    gram: C_x'x', cross: C_xx' [n, n]; dense: Σ x, pruned: Σ x' [n]; tokens: how many. float32.
    """

    gram: torch.Tensor
    cross: torch.Tensor
    dense: torch.Tensor
    pruned: torch.Tensor
    tokens: int = 0


def _look(walk: Walk, index: int, layer: nn.Module, turn: Turn) -> _Seen:
    """At the inputs of `layer` in block `index`."""
    seen = None
    for dense, pruned, weight in walk.inputs(index, layer, turn):
        if seen is None:
            n = dense.shape[-1]
            zeros = partial(torch.zeros, dtype=torch.float32, device=dense.device)
            seen = _Seen(zeros(n, n), zeros(n, n), zeros(n), zeros(n))
        gram_(seen.gram, pruned, weight)
        cross_gram_(seen.cross, dense, pruned, weight)
        seen.dense += (dense if weight is None else dense[weight]).sum(0, dtype=torch.float32)
        seen.pruned += (pruned if weight is None else pruned[weight]).sum(0, dtype=torch.float32)
        seen.tokens += len(dense) if weight is None else int(weight.sum())
    return seen


def _pair(
    name: str, layer: nn.Module, rank: int, seen: _Seen, factors: Factors, statistics: Statistics, ridge: float
) -> FactorPair:
    weight = weight_of(layer)
    source = statistics.sources[name]
    W, gram, cross, means = double(weight), double(seen.gram), double(seen.cross), ()
    gradient = double(statistics.grams[source.gradient]) if source.gradient else gram.new_zeros(1, 1)
    if not (gram.isfinite().all() and cross.isfinite().all()):
        raise NumericsError(
            f"the inputs of {name} are not finite in the pruned model: keep more of the matrices before"
        )
    if not gram.diagonal().mean() > 0:
        return factors[name]  # nothing comes in: nothing to learn
    if factors[name].mean is not None:
        dense, pruned = double(seen.dense) / seen.tokens, double(seen.pruned) / seen.tokens
        gram = gram - seen.tokens * torch.outer(pruned, pruned)
        cross = cross - seen.tokens * torch.outer(dense, pruned)
        means = (pruned.float(), (W @ dense).float())
    A, B, energy = refitted(W, gram, cross, gradient, factors.ridge, ridge)
    A, B = A[:rank].to(weight, copy=True), B[:, :rank].to(weight, copy=True)
    return FactorPair(A, B, energy.cpu(), None, *means)


def refitted(
    W: torch.Tensor, gram: torch.Tensor, cross: torch.Tensor, gradient: torch.Tensor, loss_ridge: float, ridge: float
) -> Solution:
    """The best map of every rank from x' to W x, as one nested pair; see the head of this file.

    Args:
        W: [m, n] float64. gram: C_x'x' = Σ x' x'ᵀ, cross: C_xx' = Σ x x'ᵀ [n, n] float64.
        gradient, loss_ridge: as for `loss_aware`, whose measure of an output error then replaces the square; an
            infinite loss_ridge leaves it out.
        ridge: λ as a share of the mean energy of a channel; no less than the resolution of float32 sums.
    """
    n = len(gram)
    eye = torch.eye(n, dtype=gram.dtype, device=gram.device)
    size = max(ridge, n * torch.finfo(torch.float32).eps) * gram.diagonal().mean()
    C = (gram + gram.T) / 2 + size * eye
    S = torch.cholesky_solve((cross + size * eye).T, torch.linalg.cholesky(C)).T
    Q = None
    if W.shape[0] > n:  # B* has the range of W, in whose coordinates the gradients are
        Q, W = column_basis(W)
    A, B, energy = loss_aware(W @ S, C, "input", n, gradient, loss_ridge)
    return A, B if Q is None else Q @ B, energy
