"""Greedy decoding at batch 1 on a CPU, token by token: the gain by pruning, the gain by kernels, and the rest.

    python -m bench.decode [--tokens 32] [--rounds 5] [--compiled]

All models continue the same text with a static KV cache and transformers' own modules, and take turns in one run.
`--compiled` also measures each model under `torch.compile`, which takes minutes.
"""

import argparse
import copy
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel, StaticCache

from sieve.compression.plan import Plan
from sieve.models.config import EMBEDDED_MODEL
from sieve.models.linears import layer_in, prunable, replace
from sieve.models.loading import load_model
from sieve.nn.formats.pair import Pair
from sieve.nn.fuse import fuse_
from sieve.nn.low_rank import LowRankLinear

KEPT = 0.5


class TwoProducts(nn.Module):
    """A pair as two `F.linear` calls."""

    def __init__(self, pair: LowRankLinear):
        super().__init__()
        self.A, self.B = pair.A, pair.B

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(F.linear(x, self.A.weight), self.B.weight, self.B.bias)


class Free(nn.Module):
    """A layer that computes nothing, to measure a model's time without its matrices."""

    def __init__(self, out_features: int, dtype: torch.dtype):
        super().__init__()
        self.register_buffer("out", torch.zeros(1, 1, out_features, dtype=dtype))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out.expand(*x.shape[:-1], -1)


def models(dense: PreTrainedModel) -> dict[str, PreTrainedModel]:
    """The models compared. Factors are random: the time of a product does not depend on the values."""
    matrices = prunable(dense)
    plan = Plan.uniform(matrices.values(), KEPT, 8)
    pruned = copy.deepcopy(dense)
    for name, rank in plan.ranks().items():
        pair = layer_in(Pair(rank), pruned.get_submodule(name))
        for factor in (pair.A, pair.B):
            nn.init.normal_(factor.weight, std=factor.in_features**-0.5)
        replace(pruned, name, pair)
    print(f"{plan.prunable_removed(matrices):.1%} of the prunable parameters removed")
    two, free = copy.deepcopy(pruned), copy.deepcopy(dense)
    for name in plan.ranks():
        replace(two, name, TwoProducts(two.get_submodule(name)))
    for name, layer in list(free.named_modules()):
        if type(layer) is nn.Linear:
            replace(free, name, Free(layer.out_features, layer.weight.dtype))
    return {
        "dense": dense,
        "dense, our linear": fuse_(copy.deepcopy(dense)),
        "pruned, two F.linear": two,
        "pruned, our operators": fuse_(pruned),
        "linears for free": free,
    }


class Decoder:
    """Decodes token by token with a static cache."""

    def __init__(self, model: PreTrainedModel, prompt: torch.Tensor, room: int, compiled: bool):
        self.model, self.prompt = model, prompt
        self.cache = StaticCache(config=model.config, max_cache_len=prompt.shape[1] + room)
        self._step: Callable = torch.compile(self._forward, fullgraph=True) if compiled else self._forward

    def _forward(self, token: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        out = self.model(
            input_ids=token, past_key_values=self.cache, position_ids=position[None], cache_position=position
        )
        return out.logits[:, -1].argmax(-1, keepdim=True)

    @torch.inference_mode()
    def seconds(self, tokens: int) -> float:
        """Seconds that `tokens` tokens take after the prompt."""
        self.cache.reset()
        position = torch.arange(self.prompt.shape[1])
        token = self._forward(self.prompt, position)
        position = position[-1:] + 1
        start = time.perf_counter()
        for _ in range(tokens):
            token = self._step(token, position)
            position = position + 1
        return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--compiled", action="store_true")
    arguments = parser.parse_args()

    # A decoder per model, eager and compiled.
    dense, tokenizer = load_model(EMBEDDED_MODEL, "bfloat16", "cpu")
    prompt = tokenizer("Once upon a time there was a city", return_tensors="pt").input_ids
    ways = {"eager": False} | ({"compiled": True} if arguments.compiled else {})
    decoders = {
        f"{name}, {way}": Decoder(model, prompt, arguments.tokens, compiled)
        for way, compiled in ways.items()
        for name, model in models(dense).items()
    }

    # The decoders take turns, so that changes in the machine's load reach all of them.
    times: dict[str, list[float]] = {name: [] for name in decoders}
    for turn in range(arguments.rounds + 1):
        for name, decoder in decoders.items():
            seconds = decoder.seconds(arguments.tokens)
            if turn > 0:  # the first turn compiles and fills caches
                times[name].append(seconds)

    # Speeds, and ratios to the dense model in the same mode.
    medians = {name: statistics.median(taken) for name, taken in times.items()}
    for name, median in medians.items():
        way = name.rpartition(" ")[2]
        ratios = f"{medians[f'dense, {way}'] / median:5.2f} × dense {way}"
        if way != "eager":
            ratios += f", {medians['dense, eager'] / median:5.2f} × dense eager"
        print(f"{name:32} {arguments.tokens / median:7.1f} tokens/s {ratios}")


if __name__ == "__main__":
    main()
