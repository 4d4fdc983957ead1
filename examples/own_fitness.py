"""A search with a fitness function of your own, over matrices that you choose: here the MLPs only.

python examples/own_fitness.py [MODEL] [TASK] [SEARCH]
"""

import sys

import torch

import sieve
from sieve.models.linears import prunable

source, task = sys.argv[1:3] if len(sys.argv) > 2 else ("smollm2", "geography")
search = sys.argv[3] if len(sys.argv) > 3 else "budget"
model, tokenizer = sieve.load_model(source)


def fitness(model, examples):
    """For each example, the probability of the right choice's first token among the first tokens of all choices."""
    scores = []
    for example in examples:
        ids = tokenizer(example.prompt, return_tensors="pt").input_ids
        first = [tokenizer(choice, add_special_tokens=False).input_ids[0] for choice in example.choices]
        with torch.inference_mode():
            logits = model(ids).logits[0, -1, first].float()
        scores.append(float(logits.softmax(-1)[example.answer]))
    return scores


statistics = sieve.calibrate(model, tokenizer, task, tokens=4096)
factors = sieve.project(model, statistics)
mlps = [name for name in prunable(model) if ".mlp." in name]
# This takes minutes: show progress, even if standard error is not a terminal.
with sieve.progress.shown():
    plan = sieve.search(model, tokenizer, factors, task, tolerance=0.1, search=search, fitness=fitness, matrices=mlps)
removed = plan.prunable_removed(prunable(model, plan.pivoted))
print(f"{len(plan)} matrices pruned, {removed:.1%} of the prunable parameters removed")
