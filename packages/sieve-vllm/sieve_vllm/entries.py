"""What `config.json` of a pruned model says of its layers, read without Sieve."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

PAIRS = ("pair", "pivoted_pair")
NARROW = "narrow"
_DENSE = ("dense", "mask")  # masked weights are stored as dense ones


@dataclass(frozen=True)
class Entry:
    """One layer.

    rank: of a pair. bias: whether there is one, for which the architecture may have no place.
    inputs, outputs: what a narrow layer is left with, in all of its parts.
    """

    format: str
    rank: int = 0
    bias: bool = False
    inputs: int = 0
    outputs: int = 0

    @property
    def is_pair(self) -> bool:
        return self.format in PAIRS


DENSE = Entry("dense")


def read_entries(config: Mapping[str, Any]) -> dict[str, Entry]:
    """Dotted name of each layer that is not dense → its entry; of `quantization_config`, version 1 or 2.

    Raises: ValueError for another version, for a format that is not known here, and for tensors of another library.
    """
    if (tensors := config.get("tensors")) is not None:
        raise ValueError(
            f"the model's layers are quantised by {tensors!r}, which sieve-vllm does not serve: serve the folder that "
            "it was made from"
        )
    version = config.get("version", 1)
    if version == 1:
        kind = "pivoted_pair" if config.get("pivoted") else "pair"
        layers = {
            name: {"format": kind, "rank": rank, "bias": bool(config.get("biased"))}
            for name, rank in (config.get("ranks") or {}).items()
        }
    elif version == 2:
        layers = config["layers"]
    else:
        raise ValueError(f"this model was saved in Sieve's format {version!r}: install a newer sieve-vllm")
    entries = {}
    for name, entry in layers.items():
        if entry["format"] in PAIRS:
            entries[name] = Entry(entry["format"], int(entry["rank"]), bool(entry.get("bias")))
        elif entry["format"] == NARROW:
            entries[name] = Entry(NARROW, 0, bool(entry.get("bias")), int(entry["inputs"]), int(entry["outputs"]))
        elif entry["format"] not in _DENSE:
            raise ValueError(
                f"{name} is stored as {entry['format']!r}, which sieve-vllm does not serve: save the model with pairs "
                "in 16 bits, or install a newer sieve-vllm"
            )
    return entries


def entries_of(prefix: str, packed: Mapping[str, list[str]], entries: Mapping[str, Entry]) -> list[Entry] | None:
    """The entries of the parts that a layer of vLLM is fused from; one where the whole is one; None: all dense.

    Args:
        prefix: the layer's dotted name. packed: name of a fused layer → names of its parts.

    Raises: ValueError where one part has lost other channels than the rest.
    """
    if prefix in entries:
        return [entries[prefix]]
    path, _, name = prefix.rpartition(".")
    parts = [entries.get(f"{path}.{part}", DENSE) for part in packed.get(name, [name])]
    if any(part.format == NARROW for part in parts) and len(set(parts)) > 1:
        raise ValueError(
            f"the parts of {prefix} have lost different channels: config.json is damaged, save the model again"
        )
    return None if all(part == DENSE for part in parts) else parts
