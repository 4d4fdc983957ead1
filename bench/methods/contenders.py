"""The methods that are compared: adding one is a line."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from transformers import PreTrainedModel

import sieve
from bench.methods.setting import Setting
from sieve.compression.low_rank.factors import Factors
from sieve.compression.low_rank.llm_sieve_sgd import train
from sieve.compression.low_rank.refit import refit
from sieve.compression.masks.config import MaskOptions
from sieve.compression.masks.mask import mask
from sieve.compression.masks.masks import Masks
from sieve.compression.masks.methods import MASKING, WANDA
from sieve.compression.structured.depth import MEASURES, drop_blocks_
from sieve.compression.structured.width import drop_channels_
from sieve.registry import methods

KEPT = (0.5, 0.9, 0.8, 0.7, 0.6, 0.4)
BOTH = ("task", "general")
TRAINING_TOKENS = 400_000  # of the paper's recipe: two epochs over 200,000
Made = Factors | Masks | PreTrainedModel


@dataclass(frozen=True)
class Contender:
    """A way to prune a model.

    make: setting, kept fraction and what `base` made → what `sieve.apply_` takes, or a pruned copy of the model.
    calibration: the method whose statistics it needs, None for none. data: of which texts, "task" or "general".
    nested: what it makes serves every kept fraction, and is made once.
    base: the contender that it begins with.
    kept: fractions at which it is measured, None for all that are asked for.
    """

    make: Callable[[Setting, float, Any], Made]
    calibration: str | None
    data: tuple[str, ...] = ("task",)
    nested: bool = True
    base: str | None = None
    kept: tuple[float, ...] | None = None


def projection(method: str, **options: Any) -> Contender:
    """A nested one by its name (`sieve methods`); options are those of `sieve.project`."""

    def make(setting: Setting, kept: float, base: Any) -> Factors:
        return sieve.project(setting.model, setting.statistics(method), method, **options)

    return Contender(make, method)


def trained(kept: tuple[float, ...], tokens: int = TRAINING_TOKENS) -> Contender:
    """LLM-Sieve's own recipe, as many steps as it takes on as much data as it is said to have."""

    def make(setting: Setting, kept: float, base: Any) -> Factors:
        statistics = setting.statistics("llm_sieve_sgd")
        epochs = max(1, round(tokens / statistics.tokens))
        return Factors(train(setting.model, statistics, setting.plan(kept).ranks(), epochs), "llm_sieve_sgd")

    return Contender(make, "llm_sieve_sgd", nested=False, kept=kept)


def refitted(base: str, method: str) -> Contender:
    """What `base` made by `method`, refitted plan by plan."""

    def make(setting: Setting, kept: float, base: Factors) -> Factors:
        return refit(setting.model, base, setting.plan(kept), setting.statistics(method))

    return Contender(make, method, nested=False, base=base)


def shared(method: str) -> Contender:
    """One pair for the matrices that read one input: the base of `shared_refitted`, of its model."""
    separate = projection(method)
    return replace(separate, make=lambda setting, kept, base: separate.make(setting.shared, kept, base))


def shared_refitted(base: str, method: str) -> Contender:
    """What `base` made by `shared`, refitted plan by plan."""
    separate = refitted(base, method)

    def make(setting: Setting, kept: float, base: Factors) -> PreTrainedModel:
        stacked = setting.shared
        pairs = separate.make(stacked, kept, base)
        return sieve.apply_(copy.deepcopy(stacked.model), pairs, stacked.plan(kept))

    return replace(separate, make=make)


def masking(method: str, *data: str, **options: Any) -> Contender:
    """By its name (`sieve methods`). With both "task" and "general" data the options say how they are fused."""

    def make(setting: Setting, kept: float, base: Any) -> Masks:
        found = {one: setting.statistics(method, general=one == "general") for one in data}
        if len(found) == 2:
            fused = MaskOptions(task_aware=True, **options)
            return mask(setting.model, found["task"], method, found["general"], fused)
        return mask(setting.model, next(iter(found.values()), None), method, options=MaskOptions(**options))

    return Contender(make, method if data else None, data=data)


def structured(drop: Callable[..., Any], **options: Any) -> Contender:
    """A function of `sieve.compression.structured`, which leaves a smaller plain model."""

    def make(setting: Setting, kept: float, base: Any) -> PreTrainedModel:
        pruned = copy.deepcopy(setting.model)
        drop(pruned, setting.statistics("output_aligned"), kept, **options)
        return pruned

    return Contender(make, "output_aligned", nested=False)


LOW_RANK = {
    "output_aligned": projection("output_aligned"),
    "svd_llm": projection("svd_llm"),
    "loss_aware": projection("loss_aware"),
    "output_aligned, refit": refitted("output_aligned", "output_aligned"),
    "loss_aware, refit": refitted("loss_aware", "loss_aware"),
    "output_aligned, shrunk": projection("output_aligned", shrinkage="auto"),
    "loss_aware, shrunk": projection("loss_aware", shrinkage="auto"),
    "output_aligned, shared, refit": shared_refitted("output_aligned, shared", "output_aligned"),
    "loss_aware, shared, refit": shared_refitted("loss_aware, shared", "loss_aware"),
    "asvd": projection("asvd"),
    "svd": projection("svd"),
    "pca": projection("pca"),
}
OURS = ("output_aligned", "loss_aware")  # what names of our own begin with
SLOW = {"llm_sieve_sgd": trained(kept=(0.5, 0.7))}
STRUCTURED = {f"depth, {measure}": structured(drop_blocks_, measure=measure) for measure in MEASURES}
STRUCTURED["width"] = structured(drop_channels_)
PROJECTIONS = LOW_RANK | STRUCTURED | SLOW

MASKS = [method for method in methods().values() if method.makes is MASKING and method.side != "none"]
BASES = ("wanda", *(method.name for method in MASKS if method is not WANDA))
MASKED = {"magnitude": masking("magnitude")}
for _base in BASES:
    MASKED |= {
        f"{_base} general": masking(_base, "general"),
        f"{_base} task": masking(_base, "task"),
        f"{_base} concatenated": masking(_base, *BOTH, fusion="concatenate"),
        f"{_base} fused": masking(_base, *BOTH),
    }

ABLATION = {f"wanda fused τ={tau}": masking("wanda", *BOTH, tau=tau) for tau in (0.0, 0.1, 0.4, 1.0)}
ABLATION |= {f"wanda fused {one}": masking("wanda", *BOTH, fusion=one) for one in ("max", "min", "geometric")}
ABLATION |= {f"wanda fused task={share}": masking("wanda", *BOTH, task_share=share) for share in (0.25, 0.75)}
ABLATION |= {
    f"wanda concatenated task={share}": masking("wanda", *BOTH, fusion="concatenate", task_share=share)
    for share in (0.25, 0.75)
}

BEGUN = {f"{method}, shared": shared(method) for method in OURS}  # not measured themselves
CONTENDERS = PROJECTIONS | MASKED | ABLATION | BEGUN
