"""Measured choices: which implementation was fastest on a device, as `python -m sieve_kernels.autotune` wrote them.

One JSON file per device name, in $SIEVE_KERNELS_TUNING (a file, a folder, or `off`), else in the user's cache:

    {"version": 1, "device": "NVIDIA H100", "architecture": "sm_90", "processors": 132, "versions": {"torch": …},
     "choices": [
      {"operator": "lowrank_linear", "dtype": "bfloat16", "rows": 64, "rank": 128, "implementation": "triton",
       "seconds": {"triton": …, "torch": …}}]}

Rows and rank stand for all numbers up to them and above the half of them. Where that file says nothing, the files that
the package ships (`configs/`) are asked: this GPU's, else that of the GPU of its architecture which has most nearly as
many processors. Where none says anything, the rules of `dispatch.TABLE` hold, which come from the cost models. A file
that cannot be read is left alone, with a warning. It is read once per process.
"""

import json
import os
import re
import tempfile
import warnings
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch

VARIABLE = "SIEVE_KERNELS_TUNING"
VERSION = 1
SHIPPED = Path(__file__).parents[1] / "autotune" / "configs"


@dataclass(frozen=True)
class Choice:
    """An implementation's name, and who says so."""

    implementation: str
    source: str


def choice(operator: str, dtype: torch.dtype, rows: int, rank: int, device: torch.device) -> Choice | None:
    """The implementation that was fastest for this class of shapes, None if none was measured."""
    file = path(device)
    if file is None:
        return None
    key = operator, str(dtype).removeprefix("torch."), shape_class(rows), shape_class(rank)
    name = device_name(device)
    for place, measured_on in ((file, name), *_shipped(device)):
        found = _read(place, measured_on).get(key)
        if found is not None:
            elsewhere = "" if measured_on == name else f" on {measured_on}"
            return Choice(found, f"measured fastest{elsewhere}, {place}")
    return None


def shape_class(size: int) -> int:
    """The next power of two, which stands for the numbers above the one before; 0 for 0."""
    return 1 << (size - 1).bit_length() if size > 0 else 0


def path(device: torch.device) -> Path | None:
    """The file for a device, whether it exists or not; None if tuning is off or the device is not there."""
    name, place = device_name(device), os.environ.get(VARIABLE)
    if name is None or place == "off":
        return None
    if place and place.endswith(".json"):
        return Path(place).expanduser()
    cache = os.environ.get("SIEVE_CACHE") or Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "sieve"
    folder = Path(place) if place else Path(cache) / "kernels"
    return folder.expanduser() / file_name(name)


def file_name(device: str) -> str:
    """Of a device by this name."""
    return re.sub(r"\W+", "-", device).strip("-") + ".json"


@lru_cache
def device_name(device: torch.device) -> str | None:
    """What a device calls itself; a CPU with its number of threads, on which its choices depend."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device) if torch.cuda.is_available() else None
    information = Path("/proc/cpuinfo")
    text = information.read_text() if information.exists() else ""
    model = re.search(r"^model name\s*:\s*(.+)", text, re.M)
    return f"{model.group(1) if model else 'CPU'}, {torch.get_num_threads()} threads"


def hardware(device: torch.device) -> dict[str, object]:
    """What makes GPUs of other names alike; nothing for a CPU."""
    if device.type != "cuda" or not torch.cuda.is_available():
        return {}
    properties = torch.cuda.get_device_properties(device)
    arch = getattr(properties, "gcnArchName", "").split(":")[0] if torch.version.hip else ""
    return {
        "architecture": arch or f"sm_{properties.major}{properties.minor}",
        "processors": properties.multi_processor_count,
    }


@lru_cache
def _shipped(device: torch.device) -> tuple[tuple[Path, str], ...]:
    """The file that the package ships for a device or the nearest to it, if any, and what it was measured on."""
    mine, found = hardware(device), []
    for file in sorted(SHIPPED.glob("*.json")) if mine else ():
        content = json.loads(file.read_text())
        if content["architecture"] == mine["architecture"]:
            other = content["device"] != device_name(device)
            found.append((other, abs(content["processors"] - mine["processors"]), file, content["device"]))
    return tuple((file, name) for _, _, file, name in sorted(found)[:1])


def write(file: Path, device: str, choices: list[dict], hardware: dict[str, object] | None = None) -> None:
    """Store choices, keeping those of an earlier run for the same device; the file is whole at every moment."""
    kept = {_key(entry): entry for entry in (_entries(file, device) if file.exists() else [])}
    kept |= {_key(entry): entry for entry in choices}
    content = {"version": VERSION, "device": device, **(hardware or {}), "versions": {"torch": torch.__version__}}
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=file.parent, prefix=f".{file.name}.", delete=False) as temporary:
        json.dump(content | {"choices": [kept[key] for key in sorted(kept)]}, temporary, indent=1)
    Path(temporary.name).replace(file)


def may_write(file: Path) -> bool:
    """Whether nothing is at `file`, or a file of choices, of whatever version and device."""
    try:
        return not file.exists() or {"version", "device", "choices"} <= json.loads(file.read_text()).keys()
    except (OSError, ValueError, AttributeError, RecursionError):
        return False


@lru_cache
def _read(file: Path, device: str) -> dict[tuple, str]:
    return {_key(entry): entry["implementation"] for entry in _entries(file, device)} if file.exists() else {}


def _key(entry: dict) -> tuple:
    return entry["operator"], entry["dtype"], entry["rows"], entry["rank"]


def _entries(file: Path, device: str) -> list[dict]:
    """The choices in a file, none and a warning if they are not to be used."""
    try:
        content = json.loads(file.read_text())
        if content["version"] != VERSION:
            raise ValueError(f"it has version {content['version']}, this package reads {VERSION}")
        if content["device"] != device:
            raise ValueError(f"it was measured on {content['device']}, this is {device}")
        for entry in content["choices"]:
            _key(entry), entry["implementation"]
        return content["choices"]
    except (OSError, ValueError, TypeError, KeyError) as error:
        why = f"{error} is missing" if isinstance(error, KeyError) else error
        message = f"{file} is not used: {why}; `python -m sieve_kernels.autotune` makes a new one"
        warnings.warn(message, RuntimeWarning, stacklevel=2)
        return []
