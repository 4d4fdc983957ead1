"""One pair for all matrices that read one input (q, k, v; gate, up) against one pair each, at equal parameters.

    python -m bench.methods.shared_input [--task geography] [--tokens 32768] [--examples 500]

Every matrix, or fused linear of several matrices, keeps the same fraction of its parameters; pairs are stored pivoted.
Errors are on the calibration data, in closed form: Σ |y - ŷ|² / Σ |y|², averaged over the matrices (the members of a
fused linear) of all blocks. Scores are on the test split; differences are paired, with 95 % intervals.
"""

import argparse
from pathlib import Path

import numpy as np

import sieve
from sieve.compression.plan import Plan
from sieve.evaluation.confidence import paired
from sieve.evaluation.scoring import Scores, evaluate
from sieve.models.matrix import DENSE
from sieve.tasks import load_task

KEPT = (0.8, 0.7, 0.6, 0.5, 0.4)
GROUPS = {"q, k, v": ("q_proj", "k_proj", "v_proj", "qkv_proj"), "gate, up": ("gate_proj", "up_proj", "gate_up_proj")}


def measure(shared: bool, options: argparse.Namespace) -> dict[float, tuple[dict[str, float], Scores]]:
    """Kept fraction → errors by group, and scores."""
    model, tokenizer = sieve.load_model(options.model)
    if shared:
        sieve.share_inputs_(model)
    path = options.cache / f"{'shared' if shared else 'separate'}-{options.task}.safetensors"
    statistics = sieve.calibrate(model, tokenizer, options.task, options.tokens, path=path)
    factors = sieve.project(model, statistics, pivot=True)
    matrices, task, found = factors.matrices(model), load_task(options.task), {}
    test = task.splits()["test"][: options.examples]
    with factors.elastic(model) as elastic:
        for kept in KEPT:
            plan = Plan.uniform(matrices.values(), kept)
            errors = {}
            for group, names in GROUPS.items():
                ranks = {name: rank for name, rank in plan.items() if name.rpartition(".")[2] in names}
                lost = [0.0 if rank == DENSE else factors[name].lost(rank) for name, rank in ranks.items()]
                errors[group] = float(np.mean(lost))
            elastic.set_plan(plan)
            found[kept] = errors, evaluate(model, tokenizer, task, test)
            print(f"{'shared' if shared else 'separate'}, {1 - plan.prunable_removed(matrices):.3f} kept", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--task", default="geography")
    parser.add_argument("--tokens", type=int, default=32_768)
    parser.add_argument("--examples", type=int, default=500)
    parser.add_argument("--cache", type=Path, default=Path("runs/shared_input"), help="folder of calibrations")
    options = parser.parse_args()
    options.cache.mkdir(parents=True, exist_ok=True)
    separate, shared = measure(False, options), measure(True, options)
    print(
        "\n| kept | error of q, k, v | shared | of gate, up | shared | log-lik. | shared | difference | of accuracy |"
    )
    print("|" + "---|" * 9)
    for kept in KEPT:
        (errors, scores), (fewer, others) = separate[kept], shared[kept]
        columns = [f"{side[group]:.4f}" for group in GROUPS for side in (errors, fewer)]
        columns += [f"{one.mean_loglik:.3f}" for one in (scores, others)]
        columns += [str(paired(others.loglik, scores.loglik)), str(paired(others.score, scores.score))]
        print(f"| {kept} | " + " | ".join(columns) + " |")


if __name__ == "__main__":
    main()
