"""The compiled CPU kernels: loading them, and which instruction sets can be used here, or why none.

They are one shared library with a plain C interface, called through ctypes, and run on torch's own threads. They use
the widest instruction set that the processor has. The environment variable SIEVE_KERNELS_ISA, read when they load,
names a narrower one, to behave like an older processor, or `none`, for torch's own products.
"""

import ctypes
import os
from functools import lru_cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import torch  # brings the OpenMP runtime whose symbols the library needs

from sieve_kernels.errors import SettingError

VARIABLE = "SIEVE_KERNELS_ISA"

ISAS = ("portable", "avx2", "avx512", "avx512bf16", "amx")
"""Instruction sets; each includes all before it. Same order as `Isa` in csrc/cpu_features.h."""

NONE = "none"

_BUILT = Path(__file__).parents[1] / "csrc"

_MISSING = (
    "the compiled CPU kernels were not built: install a C++ compiler (g++ or clang++ with OpenMP) and reinstall "
    "sieve-pruning; until then torch's own products serve"
)


class _SymbolInfo(ctypes.Structure):
    """`Dl_info` of dladdr(3)."""

    _fields_ = (
        ("path", ctypes.c_char_p),
        ("base", ctypes.c_void_p),
        ("name", ctypes.c_char_p),
        ("address", ctypes.c_void_p),
    )


def _share_openmp() -> None:
    """Let the library see torch's OpenMP runtime: torch's wheels for x86-64 show it to all, that for arm64 does not."""
    everywhere = ctypes.CDLL(None)
    if hasattr(everywhere, "omp_get_max_threads"):
        return
    # The file that torch's own symbol comes from: another runtime beside it would compete for the same cores.
    entry = getattr(ctypes.CDLL(torch._C.__file__), "omp_get_max_threads", None)
    info = _SymbolInfo()
    if entry is not None and everywhere.dladdr(entry, ctypes.byref(info)):
        ctypes.CDLL(os.fsdecode(info.path), mode=os.RTLD_NOLOAD | ctypes.RTLD_GLOBAL)


@lru_cache
def _load() -> tuple[ctypes.CDLL | None, str]:
    """The library and the instruction set that it uses, or None and the reason."""
    wanted = os.environ.get(VARIABLE) or None
    if wanted not in (None, NONE, *ISAS):
        raise SettingError(f"{VARIABLE}={wanted} is not one of {', '.join((NONE, *ISAS))}")
    if wanted == NONE:
        return None, f"the compiled CPU kernels are switched off ({VARIABLE}={NONE}); torch's own products serve"
    # A wheel's library may be from another Python version, which ctypes does not mind.
    found = [path for suffix in EXTENSION_SUFFIXES if (path := _BUILT / f"_library{suffix}").exists()]
    found += sorted(_BUILT.glob("_library.*.so"))
    if not found:
        return None, _MISSING
    try:
        _share_openmp()
        loaded = ctypes.CDLL(str(found[0]))
        widest = loaded.sieve_widest_isa()
    except (OSError, AttributeError) as error:  # most likely a torch without OpenMP, or a library of another version
        return None, f"the compiled CPU kernels do not load ({error}): reinstall; torch's own products serve"
    isa = widest if wanted is None else ISAS.index(wanted)
    if isa > widest:
        raise SettingError(f"{VARIABLE}={wanted}: this processor runs {', '.join(ISAS[: widest + 1])} only")
    loaded.sieve_use_isa(isa)
    return loaded, ISAS[isa]


def library() -> ctypes.CDLL | None:
    """The compiled kernels, or None."""
    return _load()[0]


def isa() -> str:
    """The instruction set in use, one of ISAS, or "none" where there are no compiled kernels."""
    return NONE if library() is None else _load()[1]


def available() -> tuple[str, ...]:
    """What SIEVE_KERNELS_ISA may name here, narrowest first."""
    return (NONE,) if library() is None else (NONE, *ISAS[: library().sieve_widest_isa() + 1])


def has_amx() -> bool:
    """Whether tile-matrix (AMX) kernels can run here."""
    return isa() == "amx"


def has_avx512() -> bool:
    """Whether kernels with 512-bit vectors can run here."""
    return isa() in ISAS[ISAS.index("avx512") :]


def status() -> str:
    """One line for users: which kernels run on this CPU."""
    if library() is None:
        return _load()[1]
    tiles = "" if has_amx() else ", without AMX tiles"
    return f"compiled CPU kernels, instruction set {isa()}{tiles} ({VARIABLE} may name {', '.join(available())})"
