"""What `sieve prune` does unless more is said, and the two ends of what a run can spend, each by one word."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from sieve.errors import InputError
from sieve.healing.config import AUTO, NONE

DEFAULT = "default"
PRESETS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "fast": MappingProxyType({"method": "output_aligned", "calibration_tokens": 16_384, "bottlenecks": 0}),
        DEFAULT: MappingProxyType(
            {"method": "widths", "shared_input": True, "heal": AUTO, "rounds": 3, "bottlenecks": 4}
        ),
        "best": MappingProxyType(
            {
                "method": "widths",
                "shared_input": True,
                "generated_tokens": 20_000,
                "heal": AUTO,
                "rounds": 4,
                "bottlenecks": 0,
            }
        ),
    }
)
"""Options of a recipe by the preset's name: `sieve.Recipe("smollm2", "geography", **sieve.PRESETS["best"])`."""

# The rest of a preset was chosen for these.
_CHOSEN = ("method", "search")


def with_preset(given: Mapping[str, Any], *, fast: bool = False, best: bool = False) -> dict[str, Any]:
    """The options that a user gave, which win over those of the preset.

    Without a preset's name they are added to those of "default", unless the user chose the method.

    Raises: InputError for both presets, or for an option that only the preset can choose.
    """
    if fast and best:
        raise InputError("--fast and --best are the two ends: give one of them")
    name = "fast" if fast else "best" if best else DEFAULT
    if name == DEFAULT and "method" in given:
        return dict(given)
    for one in _CHOSEN:
        if one in given and name != DEFAULT:
            raise InputError(f"--{name} chooses the {one}: leave --{one} out, or --{name}")
    preset = dict(PRESETS[name])
    if given.get("heal") == NONE or "kept" in given:
        # Rounds go on to ever smaller sizes, and each is healed.
        preset.pop("rounds", None)
    if "search" in given:
        # A searcher that was asked for tests as many bottlenecks as it does by itself, or none.
        preset.pop("bottlenecks", None)
    return {**preset, **given}
