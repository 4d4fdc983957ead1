"""Mixed sparsity: layers whose Hessian has a large trace keep more (Shao et al. 2023, arXiv 2310.09499).

The Hessian of a matrix's output error Σ_t |ΔW x_t|² is H for each of its rows, so its mean trace, what a weight's
change costs on average, is tr(H) / n: read off the Gram matrix, where the paper estimates it. Ranked by it, kept
fractions rise linearly from α below the mean to α above it. Ranks, not traces: traces differ by orders of magnitude.
"""

from collections.abc import Mapping


def layerwise_shifts(traces: Mapping[str, float], parameters: Mapping[str, int], alpha: float) -> dict[str, float]:
    """How much more than the mean each matrix keeps, in [-α, α]; the mean weighted by parameters is 0.

    Args: traces, parameters: matrix name → tr(H) / n, and its number of weights. Equal traces (matrices that read one
        input) get the same shift.
    """
    if not alpha:
        return dict.fromkeys(traces, 0.0)
    distinct = sorted(set(traces.values()))
    place = {trace: 2 * index / max(len(distinct) - 1, 1) - 1 for index, trace in enumerate(distinct)}
    raw = {name: alpha * place[trace] for name, trace in traces.items()}
    total = sum(parameters[name] for name in raw)
    mean = sum(value * parameters[name] for name, value in raw.items()) / total
    centred = {name: value - mean for name, value in raw.items()}
    widest = max(map(abs, centred.values()))
    return {name: value * min(1.0, alpha / widest) if widest else 0.0 for name, value in centred.items()}
