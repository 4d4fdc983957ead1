"""All factors of a model in one go."""

import math

import torch
from transformers import PreTrainedModel

from sieve import progress
from sieve.calibration import Statistics
from sieve.errors import InputError, NumericsError
from sieve.matrices import prunable, weight_of
from sieve.methods import method_named
from sieve.plan import Matrix
from sieve.projections.factors import FactorPair, Factors
from sieve.projections.loss_aware import loss_aware
from sieve.projections.ridge import choose_ridge


@torch.no_grad()
def project(
    model: PreTrainedModel, statistics: Statistics, method: str = "output_aligned", pivot: bool = False
) -> Factors:
    """Nested low-rank factors of every prunable matrix.

    Solved in float64, stored in the weights' dtype up to the largest rank that saves parameters: all factors
    together are no larger than the prunable weights themselves. Pivoted pairs save at every rank, so there the
    factors reach to full rank, and are at most twice as large as the weights.

    Args:
        model: the dense model that was calibrated; not changed.
        statistics: from `sieve.calibrate` with the same `method`.
        method: "output_aligned", the least output error (DESIGN 2.1); "loss_aware", the least output error as the
            task's loss weighs it (2.2), with the weighing chosen on held-back calibration examples.
        pivot: the pairs are to be stored pivoted (`sieve.projections.pivot`): the same maps in fewer parameters.
            Search and `apply_` follow it.

    Returns: `Factors`, matrix name → `FactorPair`.

    Raises: InputError for an unknown method or statistics of another model's matrices, NumericsError naming the
        matrix whose weights or statistics are not finite.

    Example:
        >>> factors = sieve.project(model, statistics)
        >>> factors["model.layers.0.mlp.down_proj"].lost(96)  # share of output energy lost at rank 96
    """
    method_named(method)
    matrices = prunable(model, pivot)
    unknown = [name for name in matrices if name not in statistics.sources]
    if unknown:
        raise InputError(f"the statistics know nothing of {unknown[0]}: calibrate this model first")
    ranks = {name: matrix.max_rank for name, matrix in matrices.items()}
    ridge = math.inf
    if method == "loss_aware":
        if not statistics.held_back:
            raise InputError("the statistics hold no gradients: calibrate with method='loss_aware'")

        def factors_at(ridge: float, ranks: dict[str, int]) -> Factors:
            return Factors(_pairs(model, statistics, matrices, ridge, ranks), method, pivot)

        ridge = choose_ridge(model, statistics, matrices, factors_at)
    return Factors(_pairs(model, statistics, matrices, ridge, ranks), method, pivot, ridge)


def _pairs(
    model: PreTrainedModel,
    statistics: Statistics,
    matrices: dict[str, Matrix],
    ridge: float,
    ranks: dict[str, int],
) -> dict[str, FactorPair]:
    """Factors of the matrices that `ranks` names, up to those ranks."""
    pairs = {}
    with progress.bar("projection", len(ranks), "matrices") as advance:
        for name, rank in ranks.items():
            weight = weight_of(model.get_submodule(name))
            source = statistics.sources[name]
            W, gram = _double(weight), _double(statistics.grams[source.gram])
            gradient = _double(statistics.grams[source.gradient]) if source.gradient else gram.new_zeros(1, 1)
            if not all(tensor.isfinite().all() for tensor in (W, gram, gradient)):
                raise NumericsError(f"the weights or statistics of {name} hold NaN or infinity: check the model")
            A, B, energy = loss_aware(W, gram, source.side, statistics.tokens, gradient, ridge)
            shared = statistics.grams[source.gram] if source.side == "input" else None
            pairs[name] = FactorPair(
                A[:rank].to(weight, copy=True), B[:, :rank].to(weight, copy=True), energy.cpu(), shared
            )  # fmt: skip
            advance(1)
    return pairs


def _double(tensor: torch.Tensor) -> torch.Tensor:
    """float64 where it can be had: Apple's GPUs have none, so there it is the CPU's."""
    if tensor.device.type == "mps":
        tensor = tensor.cpu()
    return tensor.to(torch.float64)
