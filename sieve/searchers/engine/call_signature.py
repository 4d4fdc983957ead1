"""A call's arguments as a signature, which two calls may have in common, and the tensors, whose values differ."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer


class UncapturableError(Exception):
    """A value of which it cannot be told whether two calls have the same."""


class Layout(NamedTuple):
    """All of a tensor but its values."""

    shape: torch.Size
    strides: tuple[int, ...] | None  # None: contiguous
    dtype: torch.dtype


class FlatCall:
    """Flattens arguments into their signature, which can be compared, and the tensors in them; and puts them together
    again.

    Args: index: of the block that is called. tensors: what `unflatten` fills a signature with.
    """

    def __init__(self, index: int, tensors: Sequence[torch.Tensor] = ()):
        self._index = index
        self.tensors = list(tensors)
        self._next: Iterator[torch.Tensor] = iter(self.tensors)
        self.caches: list[DynamicCache | OwnCache] = []

    def flatten(self, value: Any) -> Hashable:
        """The value's signature; its tensors are appended to `tensors`, its caches to `caches`."""
        if type(value) in (tuple, list):
            return type(value), *map(self.flatten, value)
        if type(value) is dict:
            return dict, *((name, self.flatten(item)) for name, item in value.items())
        if type(value) is torch.Tensor:
            self.tensors.append(value)
            if value.device != self.tensors[0].device:
                raise UncapturableError
            return Layout(value.shape, None if value.is_contiguous() else value.stride(), value.dtype)
        # Of a cache, the block reads its own layer alone.
        if type(value) is DynamicCache and not value.offloading:
            self.caches.append(value)
            layer = value.layers[self._index] if self._index < len(value.layers) else DynamicLayer()
            if type(layer) is DynamicLayer:
                return DynamicCache, self.flatten(layer.keys), self.flatten(layer.values)
        if value is None or type(value) in (bool, int, float, str):
            return type(value), value
        raise UncapturableError

    def unflatten(self, signature: Hashable) -> Any:
        """A value of this signature, of the next tensors."""
        if type(signature) is Layout:
            return next(self._next)
        kind, *items = signature
        if kind in (tuple, list):
            return kind(map(self.unflatten, items))
        if kind is dict:
            return {name: self.unflatten(item) for name, item in items}
        if kind is DynamicCache:
            self.caches.append(OwnCache(self._index, *map(self.unflatten, items)))
            return self.caches[-1]
        return items[0]


class OwnCache:
    """What block `index` sees of the cache: its own keys and values, if there are some, and what it adds to them."""

    def __init__(self, index: int, keys: torch.Tensor | None, values: torch.Tensor | None):
        self._index, self._past, self.new = index, (keys, values), None

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, index: int, *args, **kwargs
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if index != self._index or self.new is not None:
            raise UncapturableError("a block that uses another's cache")
        self.new = keys, values
        pairs = zip(self._past, self.new, strict=True)
        return tuple(torch.cat([new] if past is None else [past, new], -2) for past, new in pairs)
