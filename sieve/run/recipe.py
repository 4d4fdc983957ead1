"""A run described: typed, versioned, the same as YAML, JSON, Python and command-line options.

The command line imports this module for its defaults and its checks, so neither imports torch, which takes seconds.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, get_type_hints

from sieve.calibration.config import MINIMUM_TOKENS, check_shrinkage
from sieve.compression.masks.config import MaskOptions
from sieve.errors import InputError
from sieve.models.config import EMBEDDED_MODEL, check_device, check_dtype
from sieve.registry import SEARCHABLE, Traits, method_named
from sieve.searchers.algorithms.base import searcher_named
from sieve.searchers.config import Options, check_tolerance
from sieve.searchers.engine.config import MEMORY
from sieve.tasks.splits import check_seed
from sieve.tasks.stored import TASK_FILE
from sieve.utils.messages import shorten
from sieve.utils.safe_yaml import read_yaml

VERSION = 1
LARGEST = 2**63 - 1  # what integers of tensors can hold; NaN is not below it either


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the result of `sieve prune`.

    model: "smollm2" (embedded), a hub id, a local folder or a GGUF file.
    task: a built-in task or a task file.
    tolerance: ε in [0, 1), relative to the dense model's accuracy.
    search: name of a searcher; None: "budget", for masks "uniform".
    method: name of a projection or of a mask's scores.
    pivot: store pairs pivoted (DESIGN 2.6): the same maps in fewer parameters, so smaller models within the tolerance.
    heal: gradient steps of the pruned model towards the dense one, on calibration rows, label-free (`sieve.heal`).
    heal_steps: how many; None: 50, or so many that no row is seen more than twice.
    confident: demand the lower end of the paired 95 % interval, not the mean.
    allow_no_signal: go on where the dense model scores 0, so that every candidate is within the tolerance.
    shrinkage: share in [0, 1] of a prior in the Gram matrices, or "auto", chosen on held-back examples; None: no prior.
    shared_input: one pair for the matrices that read one input (q, k, v; gate, up): `sieve.share_inputs_`.
    refit: fit pairs anew, to inputs as the pruned model has them: those of the search's plan if `kept` names its size,
        else of the smallest plan beyond it that is within the tolerance so.
    calibration_tokens: budget of the calibration pass, padding excluded.
    rank_multiple: ranks are rounded up to it; None means 8 on CPU, 32 on GPU.
    pattern, compare, task_aware, tau, fusion, task_share, ramp, damping: of masks, as in `sieve.MaskOptions`.
    general: for task-aware masks, the general text: "general" or a task file of type perplexity.
    objective, kept, granularity, paper, population, offspring, generations, budget, layers, racing, surrogate, memory,
        bottlenecks, workers: of the search, as in `sieve.searchers.config.Options`.
    dtype, device: of the model while it is pruned; the result is stored in that dtype.
    seed: of the task's splits and of the search, from 0 on.
    """

    model: str
    task: str
    tolerance: float = 0.05
    search: str | None = None
    method: str = "output_aligned"
    pivot: bool = True
    shrinkage: float | str | None = None
    shared_input: bool = False
    refit: bool = False
    heal: bool = False
    heal_steps: int | None = None
    confident: bool = False
    allow_no_signal: bool = False
    calibration_tokens: int = 32_768
    rank_multiple: int | None = None
    pattern: str = "unstructured"
    compare: str = "row"
    task_aware: bool = False
    tau: float = 0.2
    fusion: str = "mean"
    task_share: float = 0.5
    ramp: float = 0.0
    damping: float = 0.01
    general: str = "general"
    objective: str = "parameters"
    kept: float | None = None
    granularity: str = "matrix"
    paper: bool = False
    population: int | None = None
    offspring: int | None = None
    generations: int | None = None
    budget: int | None = None
    layers: bool = True
    racing: bool = True
    surrogate: bool = True
    memory: int = MEMORY
    bottlenecks: int = 16
    workers: int | str | None = None
    dtype: str = "auto"
    device: str = "auto"
    seed: int = 0
    version: int = VERSION

    def check(self) -> Recipe:
        """InputError for any value that could not work; returns the recipe itself."""
        for name, declared in get_type_hints(type(self)).items():
            value = getattr(self, name)
            kind = int | declared if declared in (float, float | str | None) else declared
            if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
                raise InputError(f"recipe: {name} must be of type {declared}, got {shorten(value)}")
        check_seed(self.seed)
        for name, value in asdict(self).items():
            if isinstance(value, int | float) and not -LARGEST <= value <= LARGEST:
                raise InputError(f"recipe: {name} must be a finite number, at most {LARGEST:,}, got {shorten(value)}")
        if self.version != VERSION:
            raise InputError(f"the recipe is of version {self.version}, this Sieve reads {VERSION}")
        self._check_names()
        check_tolerance(self.tolerance)
        searcher_named(self.searcher).check(self.options(), self.traits)
        self.mask_options().check(self.method)
        self._check_options_of_others()
        check_shrinkage(self.shrinkage)
        if self.heal_steps is not None and (self.heal_steps < 1 or not self.heal):
            raise InputError(f"--heal-steps must be at least 1 and go with --heal, got {self.heal_steps}")
        if self.calibration_tokens < MINIMUM_TOKENS:
            raise InputError(f"--calibration-tokens must be at least {MINIMUM_TOKENS}, got {self.calibration_tokens}")
        return self

    @property
    def searcher(self) -> str:
        """The name of the searcher that is used."""
        return self.search or self.traits.default_searcher

    @property
    def traits(self) -> Traits:
        """What is known of what the method makes."""
        return SEARCHABLE[self.method].makes

    def options(self) -> Options:
        """Those of the search."""
        return Options(**{field.name: getattr(self, field.name) for field in fields(Options)})

    def mask_options(self) -> MaskOptions:
        """Those of masks."""
        return MaskOptions(**{field.name: getattr(self, field.name) for field in fields(MaskOptions)})

    def _check_names(self) -> None:
        method_named(self.method, SEARCHABLE)
        check_dtype(self.dtype)
        check_device(self.device)
        if self.rank_multiple is not None and self.rank_multiple < 1:
            raise InputError(f"--rank-multiple must be at least 1, got {self.rank_multiple}")

    def _check_options_of_others(self) -> None:
        """InputError for an option that only methods of another kind have."""
        for traits in {method.makes.results: method.makes for method in SEARCHABLE.values()}.values():
            for field in fields(self):
                foreign = traits is not self.traits and field.name in traits.options
                if foreign and getattr(self, field.name) != field.default:
                    raise InputError(
                        f"--{field.name.replace('_', '-')} is of {traits.results} and {self.method} makes none: leave "
                        f"it out, or use --method {traits.example}"
                    )

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def absolute(self) -> Recipe:
        """The same with paths that hold in any folder: of a local model and of task files."""
        model = os.path.abspath(os.path.expanduser(self.model))
        return replace(
            self,
            model=model if not _is_embedded(self.model) and os.path.exists(model) else self.model,
            task=_absolute_file(self.task),
            general=_absolute_file(self.general),
        )

    def beside_task(self) -> dict[str, Any]:
        """Its values for a folder that holds the task, too, as `task.yaml`; of a built-in one the name says enough."""
        return self.to_dict() | ({"task": TASK_FILE} if _is_file(self.task) else {})

    @classmethod
    def from_dict(cls, values: dict[str, Any], **overrides: Any) -> Recipe:
        """Values of a file, with every override that is not None in their place."""
        known = [field.name for field in fields(cls)]
        for name in values:
            if name not in known:
                raise InputError(f"recipe: unknown key {shorten(name)}; known are {', '.join(known)}")
        merged = values | {name: value for name, value in overrides.items() if value is not None}
        for name in ("model", "task"):
            if name not in merged:
                raise InputError(f"no {name} given: name one on the command line or in the recipe")
        return cls(**merged).check()

    @classmethod
    def load(cls, path: str | Path, **overrides: Any) -> Recipe:
        """Read YAML or JSON (which is YAML too); overrides win over the file.

        Paths in it are relative to its folder where there is such a file or folder, else to the current one.
        """
        values = read_recipe(path)
        for name in ("model", "task", "general"):
            value = values.get(name)
            if isinstance(value, str) and (_is_file(value) if name != "model" else not _is_embedded(value)):
                beside = os.path.abspath(Path(path).parent / value)
                values[name] = beside if os.path.exists(beside) else value
        return cls.from_dict(values, **overrides)


def _is_embedded(model: str) -> bool:
    return model == EMBEDDED_MODEL


def _is_file(task: str) -> bool:
    """Whether a task is named by its file."""
    return Path(task).suffix.lower() in (".yaml", ".yml")


def _absolute_file(task: str) -> str:
    return os.path.abspath(os.path.expanduser(task)) if _is_file(task) else task


def read_recipe(path: str | Path) -> dict[str, Any]:
    """The values of a recipe's file, not yet checked; InputError where it holds no mapping."""
    values = read_yaml(path, "the recipe")
    if not isinstance(values, dict):
        raise InputError(f"the recipe {path} must be a mapping of options, got {shorten(values)}")
    return values
