"""Cached decisions: implementations, plans, and the contents of files of measured choices."""

from collections.abc import Callable
from weakref import WeakSet

_remembered: list[Callable[[], None]] = []
_plans: WeakSet = WeakSet()


def remembers(cached: Callable) -> Callable:
    """Decorate a function with a cache (`functools.lru_cache`), which `forget` then clears."""
    _remembered.append(cached.cache_clear)
    return cached


def register(plans: object) -> None:
    """Let `forget` call `plans.clear()` as long as the object lives."""
    _plans.add(plans)


def forget() -> None:
    """Clear all cached decisions, so that calls are decided again: for measurements and tests."""
    for clear in _remembered:
        clear()
    for plans in list(_plans):
        plans.clear()
