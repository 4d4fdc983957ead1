"""The description of a run: a tree of the components' options, the same in YAML, JSON, Python and on the command line.

The command line imports this module, so it does not import torch, which takes seconds.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, is_dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, get_type_hints

from sieve.calibration.config import CalibrationConfig
from sieve.compression.config import CompressionConfig
from sieve.compression.low_rank.config import LowRankConfig
from sieve.compression.masks.config import MaskConfig, MaskOptions
from sieve.compression.vocabulary.config import VocabularyConfig
from sieve.errors import InputError, UnreadOption
from sieve.healing.config import HealingConfig
from sieve.models.config import EMBEDDED_MODEL, WHICH_MODEL, LoadConfig
from sieve.registry import Traits, method_named, methods
from sieve.run.memory import MemoryConfig
from sieve.searchers.algorithms.base import searcher_named
from sieve.searchers.config import Options
from sieve.searchers.engine.config import EngineConfig
from sieve.searchers.goal import GoalConfig
from sieve.tasks.config import SplitConfig
from sieve.tasks.stored import TASK_FILE
from sieve.utils import progress
from sieve.utils.messages import shorten
from sieve.utils.options import Option, option, options_of, require_types, require_values
from sieve.utils.safe_yaml import read_yaml

VERSION = 1
_WRITTEN = "version"  # a key of the files that Sieve writes
# Options that files of earlier versions may have in another group.
_MOVED = {"search_options": options_of(EngineConfig)}
_POSITIONAL = ("tolerance", "search", "method")


@dataclass(frozen=True, init=False)
class Recipe:
    """Everything that decides the result of `sieve prune`: a tree of configs, each owned by its component.

    Names of options are unique in the tree. So an option is given by its name (`Recipe("smollm2", "geography",
    tolerance=0.1)`) and read by its name (`recipe.tolerance` is `recipe.goal.tolerance`), and files list options.

    model: "smollm2" (embedded), a hub id, a local folder or a GGUF file.
    task: a built-in task or a task file.
    own: a config for each method that has options of its own.
    """

    GROUP = "Task"

    model: str = option(MISSING, WHICH_MODEL, argument=True)
    task: str = option(MISSING, "Built-in task (see `sieve tasks`) or task file")
    splits: SplitConfig
    calibration: CalibrationConfig
    goal: GoalConfig
    compression: CompressionConfig
    low_rank: LowRankConfig
    masks: MaskConfig
    vocabulary: VocabularyConfig
    healing: HealingConfig
    search_options: Options
    engine: EngineConfig
    loading: LoadConfig
    limits: MemoryConfig
    own: tuple[Any, ...]
    version: int = VERSION

    def __init__(self, model: str, task: str, *given: Any, **values: Any):
        """Args: given: tolerance, search, method. values: options by name, or whole configs by their field's name."""
        if len(given) > len(_POSITIONAL) or values.keys() & set(_POSITIONAL[: len(given)]):
            raise TypeError(f"only the options {', '.join(_POSITIONAL)} may be given by position, and only once")
        values |= dict(zip(_POSITIONAL, given, strict=False))
        found = {"model": model, "task": task, "version": values.pop("version", VERSION)}
        for name, config in _configs().items():
            found[name] = _with_options(values.pop(name, None) or config(), values)
        own = values.pop("own", None) or tuple(config() for config in _own_configs())
        found["own"] = tuple(_with_options(config, values) for config in own)
        if values:
            raise TypeError(f"a recipe has no option {', '.join(values)}")
        for name, value in found.items():
            object.__setattr__(self, name, value)

    def __getattr__(self, name: str) -> Any:
        # Python calls this for names that are no fields of the recipe itself: options of its configs.
        for config in () if name.startswith("_") else self.configs():
            if name in options_of(type(config)):
                return getattr(config, name)
        raise AttributeError(f"a recipe has no option {name!r}")

    def configs(self) -> tuple[Any, ...]:
        """The configs of all components."""
        return (*(getattr(self, name) for name in _configs()), *self.own)

    def check(self) -> Recipe:
        """InputError for any value that cannot work; returns the recipe itself."""
        parts = (self, *self.configs())
        for part in parts:
            require_types(part)
        for part in parts:
            require_values(part)
        if isinstance(self.version, bool) or self.version != VERSION:
            raise InputError(f"the recipe has version {shorten(self.version)}, and this Sieve reads version {VERSION}")
        searcher_named(self.searcher).check(self.search_options, self.engine, self.traits)
        self.goal.check(self.kept, self.rounds)
        self._check_options_of_others()
        self.method_config().check(self.method)
        self.healing.check()
        if self.healing.rounds > 1:
            if self.traits.config is not LowRankConfig:
                raise InputError(
                    f"--rounds is for pairs only, and {self.method} makes {self.traits.results}: leave it out"
                )
            # Later rounds search for a size, not for a tolerance.
            searcher_named(self.searcher).check(replace(self.search_options, kept=0.5), self.engine, self.traits)
        return self

    @property
    def searcher(self) -> str:
        """The name of the searcher that is used."""
        return self.goal.search or self.traits.default_searcher

    @property
    def traits(self) -> Traits:
        """Traits of the kind of result that the method makes."""
        return method_named(self.method).makes

    @property
    def keeps_statistics(self) -> bool:
        """Whether a stage behind the search needs the statistics."""
        return self.refit or self.quantize is not None

    def options(self) -> Options:
        """Options of the search."""
        return self.search_options

    def mask_options(self) -> MaskOptions:
        """Options of masks."""
        return self.masks.options()

    def method_config(self) -> Any:
        """The options that methods of this kind have."""
        return next(config for config in self.configs() if type(config) is self.traits.config)

    def own_options(self) -> dict[str, Any]:
        """Options that only this method has."""
        config = method_named(self.method).options
        return {} if config is None else {name: getattr(self, name) for name in options_of(config)}

    def _check_options_of_others(self) -> None:
        """UnreadOption for an option that only other methods have."""
        mine = method_named(self.method)
        for other in methods().values():
            if other.makes is not mine.makes:
                words = f"{other.makes.results} only, and {self.method} makes {mine.makes.results}"
                self._require_defaults(other.makes.config, words, other.makes.example)
            if other is not mine and other.options is not None:
                self._require_defaults(other.options, f"the method {other.name} only", other.name)

    def _require_defaults(self, config: type, owner: str, example: str) -> None:
        for name, one in options_of(config).items():
            if getattr(self, name) != one.default:
                raise UnreadOption(f"{one.flag} is for {owner}: leave it out, or use --method {example}", name)

    def to_dict(self) -> dict[str, Any]:
        """Its options by name, without the tree."""
        return {name: getattr(self, name) for name in recipe_options()} | {"version": self.version}

    def absolute(self) -> Recipe:
        """The same with absolute paths of a local model and of task files, valid in any folder."""
        model = os.path.abspath(os.path.expanduser(self.model))
        return replace(
            self,
            model=model if not _is_embedded(self.model) and os.path.exists(model) else self.model,
            task=_absolute_file(self.task),
            general=_absolute_file(self.general),
            unlabelled=self.unlabelled and os.path.abspath(os.path.expanduser(self.unlabelled)),
        )

    def beside_task(self) -> dict[str, Any]:
        """Its values for a folder that also holds the task as `task.yaml`; a built-in task is named."""
        return self.to_dict() | ({"task": TASK_FILE} if _is_file(self.task) else {})

    @classmethod
    def from_dict(cls, values: dict[str, Any], **overrides: Any) -> Recipe:
        """Values of a file, with every override that is not None in their place.

        A file may group options under the name of their config: `goal: {tolerance: 0.1}` is `tolerance: 0.1`.
        """
        values = _ungrouped(values)
        known = [*recipe_options(), "version"]
        for name in values:
            if name not in known:
                raise InputError(f"recipe: unknown key {shorten(name)}; the known keys are {', '.join(known)}")
        merged = values | {name: value for name, value in overrides.items() if value is not None}
        for name in ("model", "task"):
            if name not in merged:
                raise InputError(f"no {name} given: name one on the command line or in the recipe")
        return cls(**merged).check()

    @classmethod
    def load(cls, path: str | Path, **overrides: Any) -> Recipe:
        """Read YAML or JSON (which is YAML too); overrides win over the file.

        Paths in it are relative to its folder if they exist there, else to the current folder. A file that Sieve wrote
        lists all options; those that are not read any more are left out, with a note.
        """
        values = _ungrouped(read_recipe(path))
        for name in ("model", "task", "general"):
            value = values.get(name)
            if isinstance(value, str) and (_is_file(value) if name != "model" else not _is_embedded(value)):
                beside = os.path.abspath(Path(path).parent / value)
                values[name] = beside if os.path.exists(beside) else value
        while True:
            try:
                return cls.from_dict(values, **overrides)
            except UnreadOption as error:
                if _WRITTEN not in values or overrides.get(error.option) is not None:
                    raise
                progress.note(f"{path}: {error.option} is not read: {error}")
                del values[error.option]


def recipe_options() -> dict[str, Option]:
    """All options of a recipe by name, those of each component together."""
    found = dict(options_of(Recipe))
    for config in (*_configs().values(), *_own_configs()):
        found |= options_of(config)
    return found


def require_options(values: Mapping[str, Any]) -> None:
    """InputError for the first option of a recipe that cannot work."""
    for name, value in values.items():
        recipe_options()[name].require(value)


@cache
def _configs() -> dict[str, type]:
    """The fields of a recipe that hold configs."""
    return {name: kind for name, kind in get_type_hints(Recipe).items() if is_dataclass(kind)}


def _own_configs() -> tuple[type, ...]:
    """The configs of methods that have options of their own."""
    return tuple(method.options for method in methods().values() if method.options is not None)


def _with_options(config: Any, values: dict[str, Any]) -> Any:
    """The config, made from its own values, which are removed from `values`."""
    names = [name for name in options_of(type(config)) if name in values]
    return replace(config, **{name: values.pop(name) for name in names}) if names else config


def _ungrouped(values: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a file without groups."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if name not in _configs():
            found[name] = value
            continue
        known = options_of(_configs()[name]) | _MOVED.get(name, {})
        if not isinstance(value, Mapping) or any(key not in known for key in value):
            raise InputError(f"recipe: {name} must hold options of {', '.join(known)}, got {shorten(value)}")
        found |= value
    return found


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
