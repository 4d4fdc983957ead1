"""The two ends of what a run can spend, each by one word: options that `--fast` and `--best` stand for."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from sieve.errors import InputError

PRESETS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "fast": MappingProxyType({"method": "output_aligned", "calibration_tokens": 16_384, "bottlenecks": 0}),
        "best": MappingProxyType(
            {
                "method": "widths",
                "shared_input": True,
                "generated_tokens": 20_000,
                "heal": "label-free",
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

    Raises: InputError for both presets, or for an option that only the preset can choose.
    """
    if fast and best:
        raise InputError("--fast and --best are the two ends: give one of them")
    name = "fast" if fast else "best" if best else None
    if name is None:
        return dict(given)
    for one in _CHOSEN:
        if one in given:
            raise InputError(f"--{name} chooses the {one}: leave --{one} out, or --{name}")
    return {**PRESETS[name], **given}
