"""A whole decoder: tokens per second of the pruned model over the dense one, for single steps and for long prompts.

`NAME.graph.bN` is dense over pruned time of a step at batch N in the stored (pivoted) format, under a CUDA graph;
`eager` without; `plain` with plain pairs, `two` with plain pairs as two `F.linear`, `free` without the prunable
matrices. `of_free` is free over pruned time. `of_bound` is the share of what memory allows: (time of the free model +
bytes of the pruned matrices / measured copy bandwidth) / time of the pruned model.
"""

from collections.abc import Callable
from importlib.util import find_spec

import torch
from torch import nn

from bench.gpu import ceilings, clock
from bench.gpu.job import Job, Place
from bench.gpu.layers import check
from bench.gpu.sizes import Sizes

PROMPT = 16
KINDS = {"": "pivoted", "plain.": "plain", "two.": "two", "free.": "free"}
"""Contestants by their names in cells."""


def missing() -> str:
    return "" if find_spec("transformers") else "transformers is not installed"


def jobs(sizes: Sizes) -> list[Job]:
    """Decoding under graphs, then long prompts, then decoding without graphs; the larger model first."""
    found = []
    for name in sizes.models:
        graph, eager = ([_step(name, way, batch, sizes) for batch in sizes.batches] for way in ("graph", "eager"))
        prompts = [_prompt(name, shape, sizes) for shape in sizes.prompts]
        found += [*graph[:2], *eager[:1], *prompts, *graph[2:], *eager[1:2]]
    return found


def _models(name: str, device: torch.device, sizes: Sizes):
    from bench.gpu.contestants import contestants

    made = contestants(device, sizes.multiple, tuple(sorted(sizes.models[name].items())))
    ids = torch.arange(8, device=device)[None] + 10
    plain, two = (made.models[kind](input_ids=ids, use_cache=False).logits for kind in ("plain", "two"))
    check("the pruned model", plain, two, 0.1)  # rounding grows from layer to layer
    return made


def _step(name: str, way: str, batch: int, sizes: Sizes) -> Job:
    where = f"{way}.b{batch}"
    cells = [f"{name}.{kind}{where}" for kind in KINDS]
    cells += [f"{name}.{kind}{where}.{share}" for kind in ("", "plain.") for share in ("of_bound", "of_free")]
    cells += [f"ms.{name}.{where}.{model}" for model in ("dense", *KINDS.values())]

    @torch.no_grad()
    def run(place: Place) -> dict[str, float]:
        made = _models(name, place.device, sizes)
        works = {kind: _decoding(model, batch, sizes.cache, place.device) for kind, model in made.models.items()}
        if way == "graph":
            works = {kind: clock.replayed(work, place.device) for kind, work in works.items()}
        taken = clock.waited_seconds(works, place.device, 8 if place.device.type == "cuda" else 1, sizes.rounds // 2)
        found = _ratios(name, where, taken)
        bandwidth = ceilings.copied_bytes(place.device, sizes.copied)
        for kind in ("", "plain."):
            model = KINDS[kind]
            least = taken["free"] + made.pruned_bytes[model] / bandwidth
            found[f"{name}.{kind}{where}.of_bound"] = least / taken[model]
            found[f"{name}.{kind}{where}.of_free"] = taken["free"] / taken[model]
        return found

    return Job(f"{name}.{where}", tuple(cells), run, seconds=10, patience=150)


def _decoding(model: nn.Module, batch: int, room: int, device: torch.device) -> Callable[[], torch.Tensor]:
    """A step after a short prompt, repeated at the same position of the cache."""
    from transformers import StaticCache

    cache = StaticCache(config=model.config, max_cache_len=room)
    position = torch.arange(PROMPT, device=device)
    ids = torch.randint(10, model.config.vocab_size, (batch, PROMPT), device=device)

    def forward(ids: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        out = model(
            input_ids=ids,
            past_key_values=cache,
            position_ids=position[None],
            cache_position=position,
            logits_to_keep=1,
        )
        return out.logits[:, -1:].argmax(-1)

    token, after = forward(ids, position), position[-1:] + 1
    return lambda: forward(token, after)


def _prompt(name: str, shape: tuple[int, int], sizes: Sizes) -> Job:
    where = f"{shape[0]}x{shape[1]}"
    before = "" if name == "decoder" else f"{name}."
    cells = [f"{before}prefill.{kind}{where}" for kind in KINDS]
    cells += [f"ms.{before}prefill.{where}.{model}" for model in ("dense", *KINDS.values())]

    @torch.no_grad()
    def run(place: Place) -> dict[str, float]:
        models = _models(name, place.device, sizes).models
        ids = torch.randint(10, sizes.models[name]["vocab_size"], shape, device=place.device)
        works = {
            kind: lambda model=model: model(input_ids=ids, use_cache=False, logits_to_keep=1)
            for kind, model in models.items()
        }
        taken = clock.waited_seconds(works, place.device, 1, max(sizes.rounds // 3, 1))
        return _ratios(f"{before}prefill", where, taken)

    return Job(f"{before}prefill.{where}", tuple(cells), run, seconds=10, patience=150)


def _ratios(name: str, where: str, taken: dict[str, float]) -> dict[str, float]:
    ratios = {f"{name}.{kind}{where}": taken["dense"] / taken[model] for kind, model in KINDS.items()}
    return ratios | {f"ms.{name}.{where}.{model}": 1e3 * value for model, value in taken.items()}
