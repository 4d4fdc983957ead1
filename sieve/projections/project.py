"""All factors of a model in one go."""

from collections.abc import Callable

import torch
from transformers import PreTrainedModel

from sieve import progress
from sieve.calibration import Statistics
from sieve.errors import InputError, NumericsError
from sieve.matrices import prunable, weight_of
from sieve.projections.factors import FactorPair, Factors
from sieve.projections.output_aligned import output_aligned

# A method solves one matrix: (W [m, n], gram, side, tokens), all float64 → A [k, n], B [m, k], energy [k], best first.
Method = Callable[[torch.Tensor, torch.Tensor, str, int], tuple[torch.Tensor, torch.Tensor, torch.Tensor]]
METHODS: dict[str, Method] = {"output_aligned": output_aligned}


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
        pivot: the pairs are to be stored pivoted (`sieve.projections.pivot`): the same maps in fewer parameters.
            Search and `apply_` follow it.

    Returns: `Factors`, matrix name → `FactorPair`.

    Raises: InputError for an unknown method or statistics of another model's matrices, NumericsError naming the
        matrix whose weights or statistics are not finite.

    Example:
        >>> factors = sieve.project(model, statistics)
        >>> factors["model.layers.0.mlp.down_proj"].lost(96)  # share of output energy lost at rank 96
    """
    if method not in METHODS:
        raise InputError(f"unknown method {method!r}: choose one of {', '.join(METHODS)}")
    matrices = prunable(model, pivot)
    unknown = [name for name in matrices if name not in statistics.sources]
    if unknown:
        raise InputError(f"the statistics know nothing of {unknown[0]}: calibrate this model first")
    pairs = {}
    with progress.bar("projection", len(matrices), "matrices") as advance:
        for name, matrix in matrices.items():
            weight = weight_of(model.get_submodule(name))
            source = statistics.sources[name]
            W, gram = _double(weight), _double(statistics.grams[source.gram])
            if not (W.isfinite().all() and gram.isfinite().all()):
                raise NumericsError(f"the weights or statistics of {name} hold NaN or infinity: check the model")
            A, B, energy = METHODS[method](W, gram, source.side, statistics.tokens)
            rank = matrix.max_rank
            pairs[name] = FactorPair(
                A[:rank].to(weight, copy=True), B[:, :rank].to(weight, copy=True), energy.cpu()
            )  # fmt: skip
            advance(1)
    return Factors(pairs, method, pivot)


def _double(tensor: torch.Tensor) -> torch.Tensor:
    """float64 where it can be had: Apple's GPUs have none, so there it is the CPU's."""
    if tensor.device.type == "mps":
        tensor = tensor.cpu()
    return tensor.to(torch.float64)
