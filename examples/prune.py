"""Prune a model for a task in Python, step by step.

python examples/prune.py                                 # SmolLM2 for `capitals`, into runs/example
python examples/prune.py MODEL TASK OUTPUT [TOLERANCE]   # any model, any task
"""

import sys

import sieve


def main(
    source: str = "smollm2", task: str = "capitals", output: str = "runs/example", tolerance: str = "0.05"
) -> None:
    model, tokenizer = sieve.load_model(source)

    # One pass over task data: Gram matrices of each weight matrix's inputs or outputs.
    statistics = sieve.calibrate(model, tokenizer, task, tokens=16_384)

    # Nested low-rank factors of every matrix: the leading r rows and columns are the best rank-r pair.
    factors = sieve.project(model, statistics)
    name = next(iter(factors))
    print(f"{name}: rank {factors[name].max_rank // 2} loses {factors[name].lost(factors[name].max_rank // 2):.2%}")

    # The smallest model within the tolerance: matrix name → rank or "dense".
    plan = sieve.search(model, tokenizer, factors, task, tolerance=float(tolerance))
    assert sieve.Plan.from_json(plan.to_json()) == plan

    pruned = sieve.apply_(model, factors, plan)
    sieve.save(pruned, tokenizer, output)

    # Load the folder later or on another machine. After `import sieve`, AutoModelForCausalLM.from_pretrained works too.
    model, tokenizer = sieve.load(output)
    test = sieve.load_task(task).splits()["test"]
    print(f"test accuracy: {sieve.evaluate(model, tokenizer, sieve.load_task(task), test).accuracy:.3f}")


if __name__ == "__main__":
    # This takes minutes: show progress, even if standard error is not a terminal.
    with sieve.progress.shown():
        main(*sys.argv[1:])
