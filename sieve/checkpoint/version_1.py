"""Version 1 of the entry in `config.json`, which is still read but no longer written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sieve.errors import InputError
from sieve.utils.messages import shorten


def layers_of_version_1(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The entries of `layers` that say the same in version 2.

    Version 1 had one key for each thing that could be said: `ranks` (pairs), `pivoted` and `biased` (of all of them),
    `masks` (fractions that are kept) with one `pattern`, and `shared` (members of stacks).

    Raises: InputError for a key with a value of another kind. The layers' formats check the values' content.
    """
    ranks, masks, shared = (config.get(key) or {} for key in ("ranks", "masks", "shared"))
    if "ranks" not in config or not isinstance(config["ranks"], dict):
        raise InputError("config.json is damaged: quantization_config.ranks must map matrix names to ranks of 1 up")
    for key, value in (("masks", masks), ("shared", shared)):
        if not isinstance(value, dict):
            raise InputError(f"config.json is damaged: quantization_config.{key} must map names, got {shorten(value)}")
    pivoted, biased = (config.get(key, False) for key in ("pivoted", "biased"))
    for key, value in (("pivoted", pivoted), ("biased", biased)):
        if type(value) is not bool:
            raise InputError(
                f"config.json is damaged: quantization_config.{key} must be true or false, got {shorten(value)}"
            )
    pattern = {key: config[key] for key in ("pattern",) if masks and key in config}
    layers = {name: {"format": "dense"} for name in shared}
    layers |= {name: {"format": "mask", "kept": kept, **pattern} for name, kept in masks.items()}
    pair = {"format": "pivoted_pair" if pivoted else "pair", **({"bias": True} if biased else {})}
    layers |= {name: {**pair, "rank": rank} for name, rank in ranks.items()}
    for name, members in shared.items():
        layers[name]["members"] = members
    return layers
