"""A low-rank pair plus a mask of its residual, against either alone, at the same number of nonzero elements.

    python -m bench.methods.residual [--task geography] [--tokens 32768] [--examples 500] [--kept 0.5]

Every matrix keeps the same fraction of its elements: r (m + n) in the pair and the rest in the mask, the same number
in every row. Errors are on the calibration data, Σ |y - ŷ|² / Σ |y|², averaged over matrices. Scores are on the test
split; differences to the mask alone are paired, with 95 % intervals.
"""

import argparse

import numpy as np
import torch

import sieve
from sieve.compression.masks.residual import low_rank_plus_mask
from sieve.evaluation.confidence import paired
from sieve.evaluation.scoring import evaluate
from sieve.models.linears import prunable, weight_of
from sieve.models.matrix import Matrix
from sieve.models.numerics import double
from sieve.tasks import load_task
from sieve.utils import progress

SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)


def numbers(matrix: Matrix, kept: float, share: float) -> tuple[int, int]:
    """Rank of the pair and weights per row of the mask, together at most kept · m · n elements; share 1 has no mask."""
    budget, of_rank = kept * matrix.parameters, matrix.m + matrix.n
    rank = int(share * budget / of_rank)
    return rank, int((budget - rank * of_rank) / matrix.m) if share < 1 else 0


@torch.no_grad()
def approximate_(
    model: torch.nn.Module, dense: dict[str, torch.Tensor], statistics: sieve.Statistics, kept: float, share: float
) -> float:
    """Replace every matrix by pair plus mask; returns the mean output error.

    Args:
        dense: the weights [m, n] of the dense model.
        statistics: Gram matrices of all inputs.
    """
    errors = []
    with progress.bar(f"pairs have {share:.0%}", len(dense), "matrices") as advance:
        for name, matrix in prunable(model).items():
            W, H = double(dense[name]), double(statistics.grams[statistics.sources[name].gram]) / statistics.tokens
            A, B, S = low_rank_plus_mask(W, H, *numbers(matrix, kept, share), statistics.tokens)
            lost = W - B @ A - S
            errors.append(float(((lost @ H) * lost).sum() / ((W @ H) * W).sum()))
            weight_of(model.get_submodule(name)).copy_(B @ A + S)
            advance(1)
    return float(np.mean(errors))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.methods.residual", description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--task", default="geography")
    parser.add_argument("--tokens", type=int, default=32_768)
    parser.add_argument("--examples", type=int, default=500)
    parser.add_argument("--kept", type=float, default=0.5)
    options = parser.parse_args(arguments)
    model, tokenizer = sieve.load_model(options.model)
    task = load_task(options.task)
    test = task.splits()["test"][: options.examples]
    with progress.shown():
        statistics = sieve.calibrate(model, tokenizer, task, options.tokens, "sparsegpt")
        dense = {name: weight_of(model.get_submodule(name)).detach().clone() for name in prunable(model)}
        rows = []
        for share in SHARES:
            error = approximate_(model, dense, statistics, options.kept, share)
            rows.append((share, error, evaluate(model, tokenizer, task, test)))
    print("\n| share of the pair | output error | log-likelihood | − mask alone | accuracy | − mask alone |")
    print("|" + "---|" * 6)
    mask = rows[0][2]
    for share, error, scores in rows:
        loglik, accuracy = paired(scores.loglik, mask.loglik), paired(scores.score, mask.score)
        print(f"| {share:g} | {error:.4f} | {scores.mean_loglik:.3f} | {loglik} | {scores.accuracy:.3f} | {accuracy} |")


if __name__ == "__main__":
    main()
