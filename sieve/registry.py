"""The methods by name: what each asks of calibration, where it is, and what it can do.

The one table that calibration, projection, recipes, the command line and benchmarks read. It imports no stage, so that
the earliest can know of the latest.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Literal

from sieve.errors import InputError
from sieve.utils.messages import shorten


@dataclass(frozen=True)
class Traits:
    """What is known of a method's results before there are any.

    results: what they are, in a message. stage: of a run, that makes them.
    default_searcher: by name.
    predictable: whether gradients say what a smaller rank costs, for all ranks from one backward pass.
    objectives: what plans of them can make small.
    options: of a recipe, those that only such methods have. example: a method of this kind.
    """

    results: str
    stage: str
    default_searcher: str
    predictable: bool
    objectives: tuple[str, ...]
    options: tuple[str, ...]
    example: str


LOW_RANK = Traits(
    "low-rank pairs",
    stage="project",
    default_searcher="budget",
    predictable=True,
    objectives=("parameters", "bytes", "latency"),
    options=("refit", "shrinkage", "shared_input"),
    example="output_aligned",
)
MASKING = Traits(
    "masks",
    stage="score",
    default_searcher="uniform",
    predictable=False,
    objectives=("parameters",),
    options=("pattern", "compare", "task_aware", "tau", "fusion", "task_share", "ramp", "damping", "general"),
    example="wanda",
)


@dataclass(frozen=True)
class Method:
    """One way to prune.

    home: "module:function". A projection maps a `Problem` (`sieve.compression.low_rank.problem`) to factors, matrix by
        matrix; where no Gram matrices are asked for, (model, statistics, rank by matrix) to pairs.
    source: the publication.
    side: which Gram matrices it asks for: "cheapest" leaves the side to us, since C_y = W C Wᵀ follows from either;
        "input": one for the inputs of every matrix; "none": no Gram matrices, the calibration examples alone.
    gradients: it also asks for the loss's gradients at the outputs, and for examples to choose by.
    nested: one pair of factors serves every rank, so that a search can use it.
    makes: traits of its results.
    balanced: the members of a stack (`sieve.share_inputs_`) count alike, however large their outputs.
    """

    home: str
    source: str = ""
    side: Literal["cheapest", "input", "none"] = "cheapest"
    gradients: bool = False
    nested: bool = True
    balanced: bool = False
    makes: Traits = LOW_RANK

    def function(self) -> Callable:
        """What `home` names, imported now."""
        module, _, function = self.home.partition(":")
        return getattr(import_module(module), function)

    @property
    def kind(self) -> str:
        """What calibration collects for it; equal kinds are interchangeable."""
        return f"{self.side}+gradients" if self.gradients else self.side


METHODS = {
    "output_aligned": Method("sieve.compression.low_rank.output_aligned:solve", "DESIGN 2.1", balanced=True),
    "loss_aware": Method("sieve.compression.low_rank.loss_aware:solve", "DESIGN 2.2", gradients=True, balanced=True),
    "svd": Method("sieve.compression.low_rank.published:svd", "arXiv 2312.13558", side="input"),
    "pca": Method("sieve.compression.low_rank.published:pca", "arXiv 2401.15024", side="input"),
    "asvd": Method("sieve.compression.low_rank.published:asvd", "arXiv 2312.05821", side="input"),
    "svd_llm": Method("sieve.compression.low_rank.published:svd_llm", "arXiv 2403.07378", side="input"),
    "llm_sieve_sgd": Method(
        "sieve.compression.low_rank.llm_sieve_sgd:train", "arXiv 2505.18350", side="none", nested=False
    ),
}

MASKS = {
    "magnitude": Method("sieve.compression.masks.mask:mask", "arXiv 1506.02626", side="none", makes=MASKING),
    "wanda": Method("sieve.compression.masks.mask:mask", "arXiv 2306.11695", side="input", makes=MASKING),
    "sparsegpt": Method("sieve.compression.masks.mask:mask", "arXiv 2301.00774", side="input", makes=MASKING),
    "ria": Method("sieve.compression.masks.mask:mask", "arXiv 2402.18004", side="input", makes=MASKING),
}
"""Those that set weights to zero (`sieve.mask`), where the others make low-rank pairs (`sieve.project`)."""

ALL = METHODS | MASKS

NESTED = tuple(name for name, method in METHODS.items() if method.nested)
"""The projections that `sieve prune` can search with."""

SEARCHABLE = {name: ALL[name] for name in (*NESTED, *MASKS)}
"""All methods that `sieve prune` can search with."""


def method_named(name: str, among: Mapping[str, Method] = METHODS) -> Method:
    """InputError for a name that is not in the table."""
    if name not in among:
        raise InputError(f"unknown method {shorten(name)}: choose one of {', '.join(among)}")
    return among[name]
