"""The methods that are compared; a new one needs one line here."""

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
TRAINING_TOKENS = 400_000  # as in the paper: two epochs over 200,000
Made = Factors | Masks | PreTrainedModel


@dataclass(frozen=True)
class Contender:
    """A way to prune a model.

    make: (setting, kept fraction, result of `base`) → a space for `sieve.apply_`, or a pruned copy of the model.
    calibration: the method whose statistics it needs, or None. data: the texts for them, "task" or "general".
    nested: one result serves every kept fraction, so it is made once.
    base: the contender whose result it starts from.
    kept: the fractions at which it is measured; None: those of its part of the grid.
    """

    make: Callable[[Setting, float, Any], Made]
    calibration: str | None
    data: tuple[str, ...] = ("task",)
    nested: bool = True
    base: str | None = None
    kept: tuple[float, ...] | None = None


def projection(method: str, **options: Any) -> Contender:
    """A nested projection by its name (`sieve methods`); `options`: of `sieve.project`."""

    def make(setting: Setting, kept: float, base: Any) -> Factors:
        return sieve.project(setting.model, setting.statistics(method), method, **options)

    return Contender(make, method)


def trained(kept: tuple[float, ...], tokens: int = TRAINING_TOKENS) -> Contender:
    """The training of the LLM-Sieve paper, with as many steps as the paper takes on `tokens` tokens."""

    def make(setting: Setting, kept: float, base: Any) -> Factors:
        statistics = setting.statistics("llm_sieve_sgd")
        epochs = max(1, round(tokens / statistics.tokens))
        return Factors(train(setting.model, statistics, setting.plan(kept).ranks(), epochs), "llm_sieve_sgd")

    return Contender(make, "llm_sieve_sgd", nested=False, kept=kept)


def refitted(base: str, method: str) -> Contender:
    """The result of `base`, made by `method`, refitted for each plan."""

    def make(setting: Setting, kept: float, base: Factors) -> Factors:
        return refit(setting.model, base, setting.plan(kept), setting.statistics(method))

    return Contender(make, method, nested=False, base=base)


def shared(method: str) -> Contender:
    """One pair for all matrices that read one input, in the model with shared inputs: base of `shared_refitted`."""
    separate = projection(method)
    return replace(separate, make=lambda setting, kept, base: separate.make(setting.shared, kept, base))


def shared_refitted(base: str, method: str) -> Contender:
    """The result of `base`, made by `shared`, refitted for each plan."""
    separate = refitted(base, method)

    def make(setting: Setting, kept: float, base: Factors) -> PreTrainedModel:
        stacked = setting.shared
        pairs = separate.make(stacked, kept, base)
        return sieve.apply_(copy.deepcopy(stacked.model), pairs, stacked.plan(kept))

    return replace(separate, make=make)


def masking(method: str, *data: str, **options: Any) -> Contender:
    """A mask method by its name (`sieve methods`). `options` say how scores of "task" and "general" data are fused."""

    def make(setting: Setting, kept: float, base: Any) -> Masks:
        found = {one: setting.statistics(method, general=one == "general") for one in data}
        if len(found) == 2:
            fused = MaskOptions(task_aware=True, **options)
            return mask(setting.model, found["task"], method, found["general"], fused)
        return mask(setting.model, next(iter(found.values()), None), method, options=MaskOptions(**options))

    return Contender(make, method if data else None, data=data)


def structured(drop: Callable[..., Any], **options: Any) -> Contender:
    """A function of `sieve.compression.structured`: the result is a smaller plain model."""

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
OURS = ("output_aligned", "loss_aware")  # prefixes of this project's own methods
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

BEGUN = {f"{method}, shared": shared(method) for method in OURS}  # bases only, not measured
CONTENDERS = PROJECTIONS | MASKED | ABLATION | BEGUN
