"""Files of measured choices, written by `python -m sieve_kernels.autotune`: the fastest implementations of operators
and configs (`GemmConfig`) of their launches on a device.

One JSON file per device name, in $SIEVE_KERNELS_TUNING (a file, a folder, or `off`), else in the user's cache:

    {"version": 1, "device": "NVIDIA H100", "architecture": "sm_90", "num_sms": 132, "versions": {"torch": …},
     "choices": [
      {"operator": "lowrank_linear", "dtype": "bfloat16", "rows": 64, "rank": 128, "implementation": "triton",
       "seconds": {"triton": …, "torch": …}}],
     "configs": [
      {"kernel": "gemv", "dtype": "bfloat16", "bits": 16, "M": 16, "N": 1280, "K": 4096, "traits": "",
       "config": {"block_m": 16, "block_n": 8, …}, "seconds": {"16×8×256, …": …}}]}

Rows, rank and M cover all values from above their half up to them. N and K cover a quarter of the interval between two
powers of two. If that file has no entry, the files in the package (`configs/`) are searched: this GPU's, else that of
the GPU of its architecture with the most similar number of multiprocessors. If there is no entry at all, the cost
models decide. A file that cannot be read is ignored with a warning. Files are read once per process.
"""

import json
import os
import re
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch

from sieve_kernels.core.decisions import remembers
from sieve_kernels.core.device import architecture, num_sms

VARIABLE = "SIEVE_KERNELS_TUNING"
VERSION = 1
SHIPPED = Path(__file__).parents[1] / "autotune" / "configs"


@dataclass(frozen=True)
class Choice:
    """An implementation's name, and the source of the choice."""

    implementation: str
    source: str


@dataclass(frozen=True)
class MeasuredConfig:
    """The fields of a `GemmConfig`, and the source of the choice."""

    value: dict[str, int]
    source: str


def choice(operator: str, dtype: torch.dtype, rows: int, rank: int, device: torch.device) -> Choice | None:
    """The implementation that was fastest for this class of shapes, None if none was measured."""
    key = operator, str(dtype).removeprefix("torch."), shape_class(rows), shape_class(rank)
    for content, source in _measured(device):
        if key in content.implementations:
            return Choice(content.implementations[key], source)
    return None


def config(kernel: str, key: tuple, device: torch.device) -> MeasuredConfig | None:
    """The config that was fastest for this kernel and class of shapes (`GemmShape.key`), None if none was measured."""
    for content, source in _measured(device):
        found = content.configs.get((kernel, *key))
        if found is not None:
            return MeasuredConfig(found, source)
    return None


def _measured(device: torch.device) -> Iterator[tuple["_Content", str]]:
    """The contents of the files, in order of priority, each with a description of its source."""
    file = path(device)
    if file is None:
        return
    name = device_name(device)
    for place, measured_on in ((file, name), *_shipped(device)):
        elsewhere = "" if measured_on == name else f" on {measured_on}"
        yield _read(place, measured_on), f"measured fastest{elsewhere}, {place}"


def shape_class(size: int) -> int:
    """The next power of two, the representative of a class of values; 0 for 0."""
    return 1 << (size - 1).bit_length() if size > 0 else 0


def fine_class(size: int) -> int:
    """The next value of 1024, 1280, 1536, 1792, …: four even steps between powers of two."""
    step = max(1, shape_class(size) // 8)
    return -(-size // step) * step


def path(device: torch.device) -> Path | None:
    """The path of a device's file, which need not exist; None if tuning is off or the device is missing."""
    name, place = device_name(device), os.environ.get(VARIABLE)
    if name is None or place == "off":
        return None
    if place and place.endswith(".json"):
        return Path(place).expanduser()
    cache = os.environ.get("SIEVE_CACHE") or Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "sieve"
    folder = Path(place) if place else Path(cache) / "kernels"
    return folder.expanduser() / file_name(name)


def file_name(device: str) -> str:
    """The file's name for a device of this name."""
    return re.sub(r"\W+", "-", device).strip("-") + ".json"


@remembers
@lru_cache
def device_name(device: torch.device) -> str | None:
    """The device's name; for a CPU with its number of threads, on which choices depend."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device) if torch.cuda.is_available() else None
    information = Path("/proc/cpuinfo")
    text = information.read_text() if information.exists() else ""
    model = re.search(r"^model name\s*:\s*(.+)", text, re.M)
    return f"{model.group(1) if model else 'CPU'}, {torch.get_num_threads()} threads"


def hardware(device: torch.device) -> dict[str, object]:
    """The properties by which GPUs are compared; empty for a CPU."""
    if device.type != "cuda" or not torch.cuda.is_available():
        return {}
    return {"architecture": architecture(device), "num_sms": num_sms(device)}


@remembers
@lru_cache
def _shipped(device: torch.device) -> tuple[tuple[Path, str], ...]:
    """The file in the package for a device or the most similar one, if any, and the device it was measured on."""
    mine, found = hardware(device), []
    for file in sorted(SHIPPED.glob("*.json")) if mine else ():
        content = json.loads(file.read_text())
        if content["architecture"] == mine["architecture"]:
            other = content["device"] != device_name(device)
            found.append((other, abs(content["num_sms"] - mine["num_sms"]), file, content["device"]))
    return tuple((file, name) for _, _, file, name in sorted(found)[:1])


def write(
    file: Path,
    device: str,
    choices: list[dict],
    hardware: dict[str, object] | None = None,
    configs: list[dict] | None = None,
) -> None:
    """Store choices and keep those of earlier runs for the same device; the file is replaced atomically."""
    before = _entries(file, device) if file.exists() else {}
    lists = {}
    for kind, made, key in (("choices", choices, _choice_key), ("configs", configs or [], _config_key)):
        kept = {key(entry): entry for entry in [*before.get(kind, []), *made]}
        lists[kind] = [kept[name] for name in sorted(kept)]
    content = {"version": VERSION, "device": device, **(hardware or {}), "versions": {"torch": torch.__version__}}
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=file.parent, prefix=f".{file.name}.", delete=False) as temporary:
        json.dump(content | lists, temporary, indent=1)
    Path(temporary.name).replace(file)


def may_write(file: Path) -> bool:
    """Whether `file` does not exist, or is a file of choices of any version and device."""
    try:
        return not file.exists() or {"version", "device", "choices"} <= json.loads(file.read_text()).keys()
    except (OSError, ValueError, AttributeError, RecursionError):
        return False


@dataclass(frozen=True)
class _Content:
    """The content of a file."""

    implementations: dict[tuple, str]
    configs: dict[tuple, dict[str, int]]


@remembers
@lru_cache
def _read(file: Path, device: str) -> _Content:
    found = _entries(file, device) if file.exists() else {}
    return _Content(
        {_choice_key(entry): entry["implementation"] for entry in found.get("choices", [])},
        {_config_key(entry): entry["config"] for entry in found.get("configs", [])},
    )


def _choice_key(entry: dict) -> tuple:
    return entry["operator"], entry["dtype"], entry["rows"], entry["rank"]


def _config_key(entry: dict) -> tuple:
    return tuple(entry[name] for name in ("kernel", "dtype", "bits", "M", "N", "K", "traits"))


def _entries(file: Path, device: str) -> dict[str, list[dict]]:
    """The lists of a file; empty, with a warning, if they cannot be used. Files of earlier versions have no configs."""
    try:
        content = json.loads(file.read_text())
        if content["version"] != VERSION:
            raise ValueError(f"it has version {content['version']}, this package reads {VERSION}")
        if content["device"] != device:
            raise ValueError(f"it was measured on {content['device']}, this is {device}")
        found = {"choices": content["choices"], "configs": content.get("configs", [])}
        for entry in found["choices"]:
            _choice_key(entry), entry["implementation"]
        for entry in found["configs"]:
            _config_key(entry), entry["config"].keys()
        return found
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        why = f"{error} is missing" if isinstance(error, KeyError) else error
        message = f"{file} is not used: {why}; `python -m sieve_kernels.autotune` makes a new one"
        warnings.warn(message, RuntimeWarning, stacklevel=2)
        return {}
