"""Methods and searchers: what is known of each before its code, which takes seconds to import, is needed.

A room describes its methods in a light module (`TABLES`), which calibration, recipes and the command line read. The
code of a method says in its own file what it implements (`implements`), and is imported when it is first called.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from pkgutil import iter_modules
from types import MappingProxyType
from typing import Any, Literal, TypeVar

from sieve.errors import InputError
from sieve.utils.messages import shorten
from sieve.utils.options import options_of, require_values

TABLES = ("sieve.compression.low_rank.methods", "sieve.compression.masks.methods")
"""The modules that describe the methods of a room; they import no torch."""

T = TypeVar("T", bound=Callable)


@dataclass(frozen=True)
class Implemented:
    """Something that is described here and implemented in a file of its own.

    room: the package whose modules are imported to find what implements it; "" where that is done already.
    """

    room: str = field(default="", kw_only=True)

    def implementation(self) -> Any:
        """What `implements` was said of, imported now."""
        if self not in _IMPLEMENTATIONS and self.room:
            room = import_module(self.room)
            for module in iter_modules(room.__path__):
                import_module(f"{self.room}.{module.name}")
        return _IMPLEMENTATIONS[self]


@dataclass(frozen=True)
class Described(Implemented):
    """Something with a name.

    about: one line for the user, without its full stop.
    """

    name: str
    about: str


@dataclass(frozen=True)
class Traits(Implemented):
    """What is known of a method's results before there are any. What makes them implements `compression.methods.Kind`.

    results: what they are, in a message. kind: of method, in a list. stage: of a run, that makes them.
    default_searcher: by name.
    predictable: whether gradients say what a smaller rank costs, for all ranks from one backward pass.
    objectives: what plans of them can make small.
    config: the options that only such methods have; its `check(method)` refuses what the method does not read.
    example: a method of this kind.
    gives_way: whether statistics may go, matrix by matrix, as results come.
    """

    results: str
    kind: str
    stage: str
    default_searcher: str
    predictable: bool
    objectives: tuple[str, ...]
    config: type
    example: str
    gives_way: bool = False


@dataclass(frozen=True)
class Method(Described):
    """One way to prune.

    makes: traits of its results.
    source: the publication.
    side: which Gram matrices it asks for: "cheapest" leaves the side to us, since C_y = W C Wᵀ follows from either;
        "input": one for the inputs of every matrix; "none": no Gram matrices, the calibration examples alone.
    gradients: it also asks for the loss's gradients at the outputs, and for examples to choose by.
    channels: it takes channels out of MLPs, and asks for their importance too.
    nested: one result serves every rank, so that `sieve prune` can search with it.
    options: a dataclass of options that this method alone has; the implementation takes them by keyword.
    """

    makes: Traits | None = None
    source: str = ""
    side: Literal["cheapest", "input", "none"] = "cheapest"
    gradients: bool = False
    channels: bool = False
    nested: bool = True
    options: type | None = None

    def with_options(self, **options: Any) -> Callable:
        """The implementation with the method's own options as keyword arguments; InputError for bad ones."""
        known = {} if self.options is None else options_of(self.options)
        if foreign := [name for name in options if name not in known]:
            raise InputError(f"{self.name} has no option {foreign[0]}: it has {', '.join(known) or 'none of its own'}")
        if self.options is None:
            return self.implementation()
        config = self.options(**options)
        require_values(config)
        return partial(self.implementation(), **{name: getattr(config, name) for name in known})

    @property
    def kind(self) -> str:
        """What calibration collects for it; equal kinds are interchangeable."""
        return f"{self.side}{'+gradients' * self.gradients}{'+channels' * self.channels}"


_IMPLEMENTATIONS: dict[Implemented, Any] = {}
_METHODS: dict[str, Method] = {}


def implements(described: Implemented) -> Callable[[T], T]:
    """A decorator that says, in a method's own file: this is it.

    Example:
        >>> @implements(SVD)
        ... def svd(problem: Problem) -> Solution: ...
    """

    def keep(implementation: T) -> T:
        _IMPLEMENTATIONS[described] = implementation
        return implementation

    return keep


def register(*described: Method) -> None:
    """Make methods known by their names."""
    _METHODS.update({one.name: one for one in described})


def methods() -> Mapping[str, Method]:
    """All methods by name, as they were registered."""
    for table in TABLES:
        import_module(table)
    return MappingProxyType(_METHODS)


def searchable() -> tuple[str, ...]:
    """The names of those that `sieve prune` can search with."""
    return tuple(name for name, method in methods().items() if method.nested)


def method_named(name: str, makes: Traits | None = None) -> Method:
    """InputError for a name that no method has, or none of those with such results."""
    known = {key: method for key, method in methods().items() if makes in (None, method.makes)}
    if name not in known:
        raise InputError(f"unknown method {shorten(name)}: choose one of {', '.join(known)}")
    return known[name]
