"""Tiny models in every form that vLLM is given: widths and ranks are no multiples of anything, and vary by block."""

from transformers import PreTrainedModel

import sieve
from sieve.compression.plan import Plan
from tests.tiny_models import tiny_tokenizer

_KEPT = {"0": 0.3, "1": 0.7}  # of the blocks


def pruned(model: PreTrainedModel, kind: str, task: str, mean: bool | None = None) -> PreTrainedModel:
    """`model`, pruned in place.

    Args:
        kind: "default", the layers of the default preset, "stacked pairs", of stacks that are pairs, gate and up too,
            "plain pairs", or "mask". The stacked queries, keys and values of the second block stay dense.
        task: path of a task. mean: whether pairs are fitted about means, and so have biases.
    """
    if kind == "mask":
        masks = sieve.mask(model, None, "magnitude")
        return sieve.apply_(model, masks, Plan.uniform(masks.matrices(model).values(), 0.5, 1))
    method = "widths" if kind == "default" else "loss_aware"
    if kind in ("default", "stacked pairs"):
        sieve.share_inputs_(model, mlps=kind != "default", required=False)
    statistics = sieve.calibrate(model, tiny_tokenizer(), task, tokens=1024, method=method)
    pivot = kind != "plain pairs"
    factors = sieve.project(model, statistics, method=method, pivot=pivot, mean=mean)
    plan = {
        matrix: one.rank_at(next(share for block, share in _KEPT.items() if f".{block}." in matrix), 1)
        for matrix, one in factors.matrices(model).items()
        if not (".1." in matrix and matrix.endswith(("qkv_proj", "c_attn")))
    }
    return sieve.apply_(model, factors, Plan(plan, pivoted=pivot))
