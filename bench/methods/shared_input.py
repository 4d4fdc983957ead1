"""One A for all matrices that read one input (q, k, v; gate, up), against a pair for each, at equal parameters.

    python -m bench.methods.shared_input [--task geography] [--tokens 32768]

The outputs are scaled to equal energy and stacked (DESIGN 2.5); the best map of rank r from the input to all of them
has r (n + Σm) parameters, pivoted r (n + Σm - r); plain, that saves below n Σm / (n + Σm). Errors are those on the
calibration data, in closed form: Σ |y - ŷ|² / Σ |y|² of a matrix, averaged over those of a group.
"""

import argparse
from collections import defaultdict
from pathlib import Path

import torch

import sieve
from sieve.matrices import prunable, weight_of
from sieve.plan import DENSE, Matrix
from sieve.projections.output_aligned import output_aligned

KEPT = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8)


def lost(energies: list[torch.Tensor], matrices: list[Matrix], kept: float) -> float:
    """Mean error of pairs that keep this fraction of their matrices."""
    ranks = [matrix.rank_at(kept) for matrix in matrices]
    shares = [0.0 if r == DENSE else float(e[r:].sum() / e.sum()) for e, r in zip(energies, ranks, strict=True)]
    return sum(shares) / len(shares)


def stack(Ws: list[torch.Tensor], C: torch.Tensor) -> torch.Tensor:
    """[Σm, n], the outputs of each scaled to equal energy."""
    return torch.cat([W / float(((W @ C) * W).sum().clamp(min=1e-30)) ** 0.5 for W in Ws])


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--task", default="geography")
    parser.add_argument("--tokens", type=int, default=32_768)
    parser.add_argument("--statistics", type=Path, help="file that keeps the calibration")
    parser.add_argument("--every", type=int, default=3, help="one block in so many")
    options = parser.parse_args()
    model, tokenizer = sieve.load_model(options.model)
    statistics = sieve.calibrate(model, tokenizer, options.task, options.tokens, path=options.statistics)
    groups: dict[str, list[str]] = defaultdict(list)
    for name, matrix in prunable(model).items():
        if matrix.block % options.every == 0:
            groups[statistics.sources[name].gram].append(name)
    print(f"{options.model}, {options.task}, {statistics.tokens:,} tokens, every {options.every}th block")
    print("output error on calibration data, separate → shared (groups where shared is better)")
    for size, label in ((3, "q, k, v"), (2, "gate, up")):
        chosen = {key: names for key, names in groups.items() if len(names) == size}
        solved = []
        for key, names in chosen.items():
            C = statistics.grams[key].double()
            Ws = [weight_of(model.get_submodule(name)).double() for name in names]
            pairs = [(W, output_aligned(W, C, "input", statistics.tokens)[2]) for W in (*Ws, stack(Ws, C))]
            solved.append([(energy, W.shape) for W, energy in pairs])
        for pivoted, kept in ((pivoted, kept) for pivoted in (False, True) for kept in KEPT):
            errors = []
            for group in solved:
                energies, matrices = [energy for energy, _ in group], [Matrix("", *s, 0, pivoted) for _, s in group]
                errors.append((lost(energies[:-1], matrices[:-1], kept), lost(energies[-1:], matrices[-1:], kept)))
            one, other = torch.tensor(errors).mean(0).tolist()
            wins = sum(b < a for a, b in errors)
            stored = "pivoted" if pivoted else "plain"
            print(f"{label:9} {stored:8} kept {kept:.1f}  {one:.4f} → {other:.4f}  ({wins}/{len(errors)})", flush=True)


if __name__ == "__main__":
    main()
