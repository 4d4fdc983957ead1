"""What a format of layers is, and which there are: one file of this room each."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from functools import cache
from importlib import import_module
from pkgutil import iter_modules
from typing import Any, ClassVar

import torch
from torch import nn

from sieve.errors import InputError
from sieve.utils.messages import shorten


@dataclass(frozen=True)
class LayerFormat(ABC):
    """How one matrix of a model is stored.

    A format is a dataclass in a file of this room. Its fields are what `config.json` says of the layer, and
    `__post_init__` refuses values that cannot be, by an InputError that says what is wrong with the layer. The formats
    of a model can differ from layer to layer.

    name: in `config.json`.
    modules: the classes of modules that hold such layers; empty where the layer stays the dense one.
    """

    name: ClassVar[str]
    modules: ClassVar[tuple[type[nn.Module], ...]] = ()

    @classmethod
    @abstractmethod
    def summary(cls, layers: Sequence[LayerFormat]) -> str:
        """What a model card says of the layers that have this format, at least one; empty: nothing."""

    @classmethod
    def of(cls, module: nn.Module) -> LayerFormat:
        """The format of a module of one of `modules`."""
        raise NotImplementedError

    def module(
        self, m: int, n: int, bias: bool, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> nn.Module | None:
        """A module for a matrix [m, n], for a checkpoint or `fill_` to fill; None: the dense one stays.

        bias: whether the dense layer has one.

        Raises: InputError where there is none of these sizes.
        """
        return None

    def check(self, module: nn.Module, name: str) -> str | None:
        """What is wrong with the tensors that a checkpoint has filled the module `name` with; None: nothing."""
        return None

    def to_config(self) -> dict[str, Any]:
        """For `config.json`: the name, and the fields that differ from their defaults."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        own = {field.name: values[field.name] for field in fields(self) if values[field.name] != field.default}
        return {"format": self.name, **own}


@dataclass(frozen=True)
class LowRankFormat(LayerFormat):
    """A format of low-rank pairs, y = B A x + bias.

    rank: r of A [r, n] and B [m, r].
    bias: whether the pair has one; None: if the dense layer has.
    """

    rank: int
    bias: bool | None = None

    def __post_init__(self) -> None:
        if type(self.rank) is not int or self.rank < 1:
            raise InputError(f"its rank must be a whole number from 1 up, got {shorten(self.rank)}")
        if self.bias is not None and type(self.bias) is not bool:
            raise InputError(f"its bias must be true or false, got {shorten(self.bias)}")

    @classmethod
    @abstractmethod
    def numel(cls, m: int, n: int, rank: int) -> int:
        """How many numbers decide the map at this rank, without a bias."""

    @classmethod
    @abstractmethod
    def max_rank(cls, m: int, n: int) -> int:
        """The largest rank at which these are fewer than the matrix [m, n] has; 0: none."""

    @classmethod
    @abstractmethod
    def rank_of(cls, m: int, n: int, numel: float) -> float:
        """The rank, not rounded, at which it is so many numbers: the inverse of `numel`."""

    def nbytes(self, m: int, n: int, itemsize: int) -> int:
        """What is stored of a matrix [m, n], without a bias, in a dtype of so many bytes."""
        return self.numel(m, n, self.rank) * itemsize

    @abstractmethod
    def fill_(
        self,
        module: nn.Module,
        A: torch.Tensor,
        B: torch.Tensor,
        bias: torch.Tensor | None = None,
        gram: torch.Tensor | None = None,
        energy: torch.Tensor | None = None,
    ) -> None:
        """Store the map x → B A x + bias in a module of this format.

        Args:
            A: [r, n], B: [m, r], bias: [m] or None.
            gram: [n, n], of the inputs on the calibration data; energy: [min(m, n)] float64, output energy of each
                direction there. A format that rounds uses them, where they are known, to round for the data.
        """

    @abstractmethod
    def factors(self, module: nn.Module) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """A [r, n], B [m, r] and bias [m] or None of the map that a module stores."""


@cache
def formats() -> dict[str, type[LayerFormat]]:
    """All formats by name, in the order of their files."""
    room = import_module(__name__.rpartition(".")[0])
    found = [import_module(f"{room.__name__}.{file.name}") for file in iter_modules(room.__path__)]
    return {
        kind.name: kind
        for module in found
        for kind in vars(module).values()
        if isinstance(kind, type) and issubclass(kind, LayerFormat) and hasattr(kind, "name")
    }


def format_of(module: nn.Module) -> LayerFormat | None:
    """The format of a module that stands for a matrix; None for any other, dense layers among them."""
    for kind in formats().values():
        if isinstance(module, kind.modules):
            return kind.of(module)
    return None


def formats_of(model: nn.Module) -> dict[str, LayerFormat]:
    """Dotted name of each layer that is not dense → its format."""
    found = {name: format_of(module) for name, module in model.named_modules()}
    return {name: format for name, format in found.items() if format is not None}


def format_from_config(entry: Mapping[str, Any]) -> LayerFormat:
    """The format that an entry of `config.json` describes.

    Raises: InputError that says what is wrong with the layer: its format, one of its fields.
    """
    if not isinstance(entry, Mapping):
        raise InputError(f"it must be a format and its fields, got {shorten(entry)}")
    values = dict(entry)
    name = values.pop("format", None)
    if not isinstance(name, str) or name not in formats():
        raise InputError(f"its format is {shorten(name)}; this Sieve reads {', '.join(formats())}")
    kind = formats()[name]
    known = {field.name: field for field in fields(kind)}
    lacking = [key for key, field in known.items() if field.default is MISSING and key not in values]
    unknown = [key for key in values if key not in known]
    if lacking or unknown:
        raise InputError(
            f"it lacks {lacking[0]}" if lacking else f"this Sieve knows nothing of its {shorten(unknown[0])}"
        )
    return kind(**values)
