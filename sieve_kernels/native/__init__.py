"""The compiled CPU kernels: loading them, what this processor can run of them, and why not where it cannot.

They are one shared library with a plain C interface, called through ctypes, and run on torch's own threads.
"""

import ctypes
from functools import lru_cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import torch  # noqa: F401 - brings the OpenMP runtime whose symbols the library needs

_MISSING = (
    "the compiled CPU kernels were not built: install a C++ compiler (g++ or clang++ with OpenMP) and reinstall "
    "sieve-pruning; until then torch's own products serve"
)


@lru_cache
def _load() -> tuple[ctypes.CDLL | None, str]:
    """The library, or None and the reason."""
    found = [path for suffix in EXTENSION_SUFFIXES if (path := Path(__file__).with_name(f"_library{suffix}")).exists()]
    if not found:
        return None, _MISSING
    try:
        return ctypes.CDLL(str(found[0])), ""
    except OSError as error:  # most likely a torch without OpenMP
        return None, f"the compiled CPU kernels do not load ({error}); torch's own products serve"


def library() -> ctypes.CDLL | None:
    """The compiled kernels, None where there are none."""
    return _load()[0]


@lru_cache
def has_amx() -> bool:
    """Whether tile-matrix (AMX) kernels can run here."""
    return library() is not None and bool(library().sieve_has_amx())


def status() -> str:
    """One line for people: what serves on this CPU."""
    if library() is None:
        return _load()[1]
    return "compiled CPU kernels, with AMX tiles" if has_amx() else "compiled CPU kernels, this processor has no AMX"
