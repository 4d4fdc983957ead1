"""The gain by shrinking the Gram matrices, by the number of calibration tokens.

    python -m bench.methods.shrinkage [--task geography] [--tokens 1024 4096 16384 65536]

It measures several weights of the diagonal prior (with --general also of general text), and the weight that
`shrinkage="auto"` chooses on held-out calibration tokens. For each it reports the output error on calibration data and
on the fitness split (Σ |y - ŷ|² / Σ |y|², averaged over the matrices of every third block), and the test split's mean
log-likelihood of the right answer, paired with no shrinkage. Rows are appended to a file of JSON lines.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

import sieve
from bench.cells import RESULTS, Results, versions
from sieve.calibration.text import calibration_sequences
from sieve.compression.low_rank.shrinkage import EVERY, SHARES, output_errors
from sieve.compression.plan import Plan
from sieve.evaluation.scoring import evaluate
from sieve.models.linears import prunable
from sieve.models.loading import context_length
from sieve.tasks import load_task
from sieve.tasks.general import general_text

KEY = ("task", "method", "kept", "tokens", "prior", "share", "auto")
NEW_TOKENS = 8192


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--task", default="geography")
    parser.add_argument("--tokens", type=int, nargs="+", default=[1024, 4096, 16_384, 65_536])
    parser.add_argument("--kept", type=float, default=0.5)
    parser.add_argument("--examples", type=int, default=500, help="of the test split")
    parser.add_argument("--general", action="store_true", help="also with general text as the prior")
    parser.add_argument("--method", default="output_aligned")
    parser.add_argument("--output", type=Path, default=RESULTS / "shrinkage.jsonl")
    options = parser.parse_args()

    # New texts, a uniform plan, and the matrices whose errors are measured.
    model, tokenizer = sieve.load_model(options.model)
    task = load_task(options.task)
    splits = task.splits()
    new = calibration_sequences(tokenizer, task, splits["fitness"], NEW_TOKENS, context_length(model) or 2048)
    plan = Plan.uniform(prunable(model).values(), options.kept, 8)
    compared = {
        m.name: plan[m.name] for m in prunable(model).values() if m.block % EVERY == 0 and m.name in plan.ranks()
    }
    common = {"model": options.model, "task": task.name, "method": options.method, "kept": options.kept}
    results = Results(options.output, KEY)

    # Every prior and weight for each number of calibration tokens. The first weight, 0, is the reference.
    for tokens in options.tokens:
        statistics = sieve.calibrate(model, tokenizer, task, tokens, options.method)
        priors = {"diagonal": None}
        if options.general:
            priors["general"] = sieve.calibrate(model, tokenizer, general_text(), tokens, options.method)
        plain = None
        for prior, other in priors.items():
            shares = [*SHARES, "auto"] if prior == "diagonal" else [*SHARES[1:], "auto"]
            for share in shares:
                # Factors, their errors on texts seen and unseen, and the model's scores.
                factors = sieve.project(model, statistics, options.method, plan=plan, shrinkage=share, prior=other)
                seen, unseen = (
                    output_errors(model, texts, [factors], compared)[0] for texts in (statistics.samples, new)
                )
                with factors.elastic(model) as elastic:
                    elastic.set_plan(plan)
                    loglik = evaluate(model, tokenizer, task, splits["test"][: options.examples]).loglik
                plain = loglik if plain is None else plain
                gain = loglik - plain

                # A row, stored at once.
                row = common | {
                    "tokens": statistics.tokens, "prior": prior, "share": factors.shrinkage, "auto": share == "auto",
                    "error_calibration": round(seen, 6), "error_new": round(unseen, 6),
                    "loglik": round(float(loglik.mean()), 5), "gain": round(float(gain.mean()), 5),
                    "gain_standard_error": round(float(gain.std() / np.sqrt(len(gain))), 5), "n": len(gain),
                } | versions()  # fmt: skip
                results.add(row)
                print(
                    f"{row['tokens']:>6} tokens  {prior:8} {'auto ' if row['auto'] else ''}{row['share']:<5g} error "
                    f"{seen:.4f} seen, {unseen:.4f} new; loglik {row['loglik']:.4f}, gain {row['gain']:+.4f} "
                    f"± {row['gain_standard_error']:.4f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
