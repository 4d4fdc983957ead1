"""What was decided once and is remembered: implementations, plans, and what was read from files of measured choices."""

from collections.abc import Callable
from weakref import WeakSet

_remembered: list[Callable[[], None]] = []
_plans: WeakSet = WeakSet()


def remembers(cached: Callable) -> Callable:
    """Decorate a function with a cache (`functools.lru_cache`), which `forget` then clears."""
    _remembered.append(cached.cache_clear)
    return cached


def register(plans: object) -> None:
    """Let `forget` clear an object's decisions, `plans.clear()`, as long as it lives."""
    _plans.add(plans)


def forget() -> None:
    """Let every call be decided anew: for what measures the alternatives, and tests that change what decides."""
    for clear in _remembered:
        clear()
    for plans in list(_plans):
        plans.clear()
