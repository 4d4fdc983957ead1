"""The cost of a genetic search against plain evaluation of the same candidates, and whether the results agree.

python -m bench.search_cost [--generations 10] [--replay 60] [--journal FILE]

It prints the table of layer-tokens. Then it evaluates some candidates again (a third are the best, the others random)
without any shortcut: each prompt with each choice is a sequence of its own. With a journal, a stopped run resumes.
"""

import argparse
import random
import time

import torch

import sieve
from sieve.evaluation.likelihood import Sharing
from sieve.evaluation.scoring import prepare
from sieve.models.decoder import decoder_blocks
from sieve.models.loading import evaluating
from sieve.searchers.run import run_search
from sieve.searchers.surrogate import rank_correlation
from sieve.tasks import load_task
from sieve.utils import progress


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--task", default="geography")
    parser.add_argument("--search", default="ga")
    parser.add_argument("--tolerance", type=float, default=0.05)
    parser.add_argument("--tokens", type=int, default=32_768, help="of the calibration pass")
    parser.add_argument("--statistics", help="file that keeps the calibration")
    parser.add_argument("--journal", help="file that keeps the evaluations")
    parser.add_argument("--generations", type=int)
    parser.add_argument("--replay", type=int, default=60, help="candidates to evaluate plainly")
    chosen = parser.parse_args(arguments)

    # The search.
    model, tokenizer = sieve.load_model(chosen.model)
    task = load_task(chosen.task)
    statistics = sieve.calibrate(model, tokenizer, task, chosen.tokens, path=chosen.statistics)
    factors = sieve.project(model, statistics)
    started = time.perf_counter()
    with progress.shown():
        result = run_search(
            model, tokenizer, factors, task, chosen.tolerance, chosen.search,
            generations=chosen.generations, journal=chosen.journal, bottlenecks=0,
        )  # fmt: skip
    seconds = time.perf_counter() - started

    # Its cost, against plain evaluation and against an engine that shares prompts within a candidate, pads nothing and
    # evaluates each candidate once, but on all examples.
    cost = result.cost
    print(f"{cost['candidates']} candidates, {len(result.evaluated)} on all examples, {seconds:.0f} s in this process")
    print(f"layer-tokens: plain {cost['layer_tokens_plain']:,}, spent {cost['layer_tokens_spent']:,}, ", end="")
    print(f"ratio {cost['cost_ratio']:.1f}; surrogate's rank correlation {result.rank_correlation}")
    strong = cost["candidates"] * result.evaluated[0].scores.tokens * len(decoder_blocks(model)[1])
    print(f"against shared prompts alone: {strong:,}, ratio {strong / cost['layer_tokens_spent']:.1f}")
    for name, saved in cost["saved_by"].items():
        print(f"  {name:10} {saved:15,}")

    # Candidates evaluated again without shortcuts: the best ones, where a wrong rank would matter, and random ones.
    best = sorted(result.evaluated, key=lambda one: -one.scores.mean_loglik)
    top = best[: chosen.replay // 3]
    replayed = top + random.Random(0).sample(best[len(top) :], min(chosen.replay, len(best)) - len(top))
    prepared = prepare(model, tokenizer, task, task.splits()["fitness"], sharing=Sharing(False, False, False))
    plain, taken = [], []
    with evaluating(model), torch.inference_mode(), factors.elastic(model) as elastic:
        for candidate in replayed:
            started = time.perf_counter()
            elastic.set_plan(candidate.plan)
            plain.append(prepared.run(model))
            taken.append(time.perf_counter() - started)
            print(
                f"  plain {plain[-1].accuracy:.4f} {plain[-1].mean_loglik:.4f}, search "
                f"{candidate.scores.accuracy:.4f} {candidate.scores.mean_loglik:.4f}, {taken[-1]:.1f} s", flush=True,
            )  # fmt: skip

    # Whether both evaluations agree.
    if replayed:
        logliks = [[scores.mean_loglik for scores in side] for side in (plain, [one.scores for one in replayed])]
        first = [max(range(len(side)), key=side.__getitem__) for side in logliks]
        print(f"rank correlation of log-likelihoods: {rank_correlation(*logliks)}; same best: {first[0] == first[1]}")
        print(f"seconds per candidate: plain {sum(taken) / len(taken):.1f}, search {seconds / cost['candidates']:.2f}")


if __name__ == "__main__":
    main()
