"""All factors of a model in one go."""

import math
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from transformers import PreTrainedModel

from sieve.calibration.statistics import Source, Statistics
from sieve.compression.low_rank.config import check_shrinkage, check_shrinks
from sieve.compression.low_rank.factors import Factors
from sieve.compression.low_rank.methods import LOW_RANK, Projection, matrices_of
from sieve.compression.low_rank.pair import FactorPair
from sieve.compression.low_rank.parallel import LARGEST, each
from sieve.compression.low_rank.problem import Problem, Solution, balanced, problem_of
from sieve.compression.low_rank.ridge import choose_ridge
from sieve.compression.low_rank.shrinkage import choose_shrinkage
from sieve.compression.plan import Plan
from sieve.compression.structured.channel_pair import channel_pair
from sieve.errors import InputError
from sieve.models.linears import weight_of
from sieve.models.matrix import Matrix
from sieve.models.mlp_width import MlpWidth
from sieve.models.prunable_model import PrunableModel
from sieve.nn.stacked import member_out_features
from sieve.registry import method_named
from sieve.utils import progress


@torch.no_grad()
def project(
    model: PreTrainedModel | PrunableModel,
    statistics: Statistics,
    method: str = "output_aligned",
    pivot: bool = False,
    plan: Mapping[str, int | str] | None = None,
    shrinkage: float | Literal["auto"] | None = None,
    prior: Statistics | None = None,
    mean: bool | None = None,
    release: bool = False,
    **options: Any,
) -> Factors:
    """Low-rank factors of every prunable matrix, nested where the method can.

    Solved in float64, stored in the weights' dtype up to the largest rank that saves parameters: all factors
    together are no larger than the prunable weights themselves. Pivoted pairs save at every rank, so there the
    factors reach to full rank, and are at most twice as large as the weights.

    Args:
        model: the dense model that was calibrated; not changed.
        statistics: from `sieve.calibrate` with the same `method`, or one that asks for at least as much.
        method: "output_aligned", the least output error (DESIGN 2.1); "loss_aware", the least output error as the
            task's loss weighs it (2.2), with the weighing chosen on held-back calibration examples; or a published
            one, to compare: docs/methods.md.
        pivot: the pairs are to be stored pivoted (`PivotedLinear`): the same maps in fewer parameters.
            Search and `apply_` follow it.
        shrinkage: share in [0, 1] of a prior in the Gram matrices, which few tokens overstate; "auto" chooses it on
            held-back calibration examples. None: no prior.
        prior: statistics of general text, of the same kind; without them the prior is the Gram matrix's own diagonal.
        mean: fit what inputs and outputs are beyond their means, which go into the bias (DESIGN 2.4): never worse on
            the calibration data, for m numbers more where the dense matrix has no bias. None: where it has one.
        plan: project only the matrices that it prunes, to its ranks. Methods that are not nested cannot do without.
        release: take each Gram matrix out of `statistics` when the last matrix that it serves is done, so that memory
            holds no more of them than pairs keep for themselves. The statistics are of no use afterwards.
        options: those that the method alone has, where it has any (`sieve.registry.Method.options`).

    Returns: `Factors`, matrix name → `FactorPair`.

    Raises: InputError for an unknown method or statistics of another model's matrices or of too little,
        NumericsError naming the matrix whose weights or statistics are not finite.

    Example:
        >>> factors = sieve.project(model, statistics)
        >>> factors["model.layers.0.mlp.down_proj"].lost(96)  # share of output energy lost at rank 96
    """
    wanted = method_named(method, LOW_RANK)
    model = PrunableModel.of(model)
    matrices = matrices_of(method, model, pivot)
    if wanted.channels and not model.channel_writers:
        progress.note(
            f"{type(model.model).__name__} has no MLP of a known kind whose matrices can all be pruned: {method} makes "
            "pairs of all its matrices, as loss_aware does"
        )
    _check(statistics, matrices, method, wanted)
    check_shrinkage(shrinkage)
    check_shrinks(shrinkage, method)
    if prior is not None and shrinkage is None:
        raise InputError("a prior has no weight without shrinkage: give shrinkage='auto', or leave the prior out")
    solve = wanted.with_options(**options)
    ranks = _ranks(matrices, plan)
    if wanted.side == "none":
        if plan is None:
            raise InputError(f"{method} learns one rank at a time: give the plan whose ranks it is to learn")
        return Factors(solve(model.model, statistics, ranks), method, pivot)
    # Choose the shrinkage first, then the ridge, each with trial factors of a few matrices.
    ridge, share = math.inf, 0.0 if shrinkage in (None, "auto") else shrinkage
    if shrinkage == "auto":

        def pairs_at(share: float, known: Statistics, ranks: dict[str, int]) -> dict[str, FactorPair]:
            return _pairs(model, known, wanted, solve, ranks, math.inf, share, prior, mean)

        share = choose_shrinkage(model, statistics, pairs_at)
    if wanted.gradients:

        def factors_at(ridge: float, ranks: dict[str, int]) -> Factors:
            return Factors(_pairs(model, statistics, wanted, solve, ranks, ridge, share, prior, mean), method, pivot)

        alone = {name: matrix for name, matrix in matrices.items() if not isinstance(matrix, MlpWidth)}
        ridge = choose_ridge(model, statistics, alone, factors_at)
    # All matrices, with what was chosen.
    pairs = _pairs(model, statistics, wanted, solve, ranks, ridge, share, prior, mean, release)
    return Factors(pairs, method, pivot, ridge, share)


def _check(statistics: Statistics, matrices: Mapping[str, Matrix], method: str, wanted: Projection) -> None:
    """InputError unless the statistics are of these matrices and hold what the method asks for."""
    unknown = [name for name in matrices if name not in statistics.sources]
    if unknown:
        raise InputError(f"the statistics know nothing of {unknown[0]}: calibrate this model first")
    sources = [statistics.sources[name] for name in matrices]
    widths = {name for name, matrix in matrices.items() if isinstance(matrix, MlpWidth)}
    weighed = [statistics.sources[name] for name in matrices.keys() - widths]
    lacking = None
    if wanted.gradients and not (statistics.held_back and all(source.gradient for source in weighed)):
        lacking = "gradients"
    elif widths and not statistics.importance:
        lacking = "importance of channels"
    elif wanted.side == "input" and not all(source.side == "input" and source.gram for source in sources):
        lacking = "Gram matrices of the inputs of every matrix"
    elif wanted.side == "cheapest" and not all(source.gram for source in sources):
        lacking = "Gram matrices"
    if lacking:
        raise InputError(f"the statistics hold no {lacking}: calibrate with method={method!r}")


def _ranks(matrices: Mapping[str, Matrix], plan: Mapping[str, int | str] | None) -> dict[str, int]:
    """How far each matrix is to be projected."""
    if plan is None:
        return {name: matrix.max_rank for name, matrix in matrices.items()}
    plan = Plan(plan)
    plan.check(matrices)
    return plan.ranks()


def _pairs(
    model: PrunableModel,
    statistics: Statistics,
    method: Projection,
    solve: Callable[[Problem], Solution],
    ranks: Mapping[str, int],
    ridge: float,
    shrinkage: float,
    prior: Statistics | None,
    mean: bool | None,
    release: bool = False,
) -> dict[str, FactorPair]:
    """Factors of the matrices that `ranks` names, up to those ranks."""
    layers = {name: model.layer(name) for name in ranks}
    # The loss weighs outputs by what they do to it; an error alone would leave the weak members of a stack nothing.
    heights = member_out_features(model.model) if method.balanced and math.isinf(ridge) else {}
    widths = model.channel_writers if method.channels else {}

    def pair(name: str) -> FactorPair:
        layer, rank, source = layers[name], ranks[name], statistics.sources[name]
        weight = weight_of(layer)
        centred = mean if mean is not None else layer.bias is not None and source.inputs in statistics.sums
        problem = problem_of(name, weight, statistics, ridge, shrinkage, prior, centred)
        means = _means(weight, statistics.sums[source.inputs][0] / statistics.tokens) if centred else ()
        if name in widths:
            return channel_pair(problem, statistics.importance[name], widths[name], rank, *means)
        problem, scale = balanced(problem, heights[name]) if name in heights else (problem, None)
        A, B, energy = solve(problem)
        B = B if scale is None else B / scale
        shared = statistics.grams[source.gram] if source.side == "input" else None
        A, B = A[:rank].to(weight, copy=True), B[:, :rank].to(weight, copy=True)
        return FactorPair(A, B, energy.cpu(), shared, *means)

    small = max((max(layer.weight.shape) for layer in layers.values()), default=0) <= LARGEST
    pairs = {}
    waiting = Counter(key for name in ranks for key in _grams_of(statistics.sources[name]))
    for key in statistics.grams.keys() - waiting.keys() if release else ():
        del statistics.grams[key]
    with progress.bar("projection", len(ranks), "matrices") as advance:
        for name, made in zip(ranks, each(pair, ranks, small and model.device.type == "cpu"), strict=True):
            pairs[name] = made
            waiting.subtract(keys := _grams_of(statistics.sources[name]))
            for key in keys if release else ():
                if not waiting[key]:
                    del statistics.grams[key]
            advance(1)
    return pairs


def _grams_of(source: Source) -> list[str]:
    return [key for key in (source.gram, source.gradient) if key]


def _means(weight: torch.Tensor, mean: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of inputs and outputs, float32."""
    return mean, weight.float() @ mean
