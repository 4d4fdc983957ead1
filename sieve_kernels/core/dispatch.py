"""Dispatch: which implementation a call takes, and why.

Every operator lists its implementations in the file that defines it. A call takes the first one that supports and
prefers it; the order follows from the cost models. The environment variable SIEVE_KERNELS (`torch`, `cpp`, `triton`,
`triton_gemv`, `triton_fused`, …) overrides this where the named implementation supports the call. What `python -m
sieve_kernels.autotune` measured on this device (`tuning_cache.py`) comes in between. `explain` says what a call would
take, and what decided it.
"""

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from sieve_kernels.autotune.config import ChosenConfig, recorded
from sieve_kernels.core import library, tuning_cache
from sieve_kernels.core.decisions import remembers
from sieve_kernels.core.device import INTERPRETED, has_tma
from sieve_kernels.errors import SettingError

VARIABLE = "SIEVE_KERNELS"

GEMV_ROWS = 8
"""Most rows of the compiled CPU kernels without AMX."""

GEMV_ROWS_GPU = 32
"""Most rows for which the GEMV kernels are preferred: there reading the weights takes the time. Measured on an H100,
they are faster than the library's products at 16 rows and slower at 64."""

SOME_ROWS_GPU = range(129, 513)
"""Rows for which a library product per member of a group leaves much of a GPU idle, so that one launch for all members
may pay. Products of fewer rows do well on separate streams; products of more rows fill the GPU."""

HALF_TILE_ROWS = range(GEMV_ROWS_GPU + 1, 65)
"""Rows that fit one tile of half the usual height: small pairs of so many rows can take their own kernels."""


@dataclass(frozen=True)
class Call:
    """What the choice depends on. rows: tokens. rank: 0 for operators without one."""

    device: torch.device
    dtype: torch.dtype
    rows: int
    rank: int = 0


@dataclass(frozen=True)
class Implementation:
    """One way to compute an operator.

    Attributes:
        name: its name in SIEVE_KERNELS, the tuning cache and `explain`.
        function: returns the function; called at first use, so that Triton is imported only for GPUs.
        why: the reason for it, in words.
        supports: whether it can compute a call.
        prefers: whether it should, if nothing was measured or requested.
    """

    name: str
    function: Callable[[], Callable]
    why: str
    supports: Callable[[Call], bool]
    prefers: Callable[[Call], bool] = lambda call: True

    def load(self) -> Callable:
        """The function. ImportError with advice if it needs Triton and Triton is not installed."""
        try:
            return self.function()
        except ModuleNotFoundError as error:
            if error.name != "triton":
                raise
            raise ImportError(
                f"the GPU path needs Triton: pip install triton, or set {VARIABLE}=torch for library products"
            ) from error


TABLE: dict[str, tuple[Implementation, ...]] = {}
"""The implementations of every operator, in the order given to `core.op.define_op`."""

RENAMED = {"native": "cpp"}
"""Earlier names of implementations, which settings and files of measured choices may contain."""


def anywhere(call: Call) -> bool:
    return True


def on_cpu(call: Call) -> bool:
    return call.device.type == "cpu"


def on_gpu(call: Call) -> bool:
    return not on_cpu(call)


def never(call: Call) -> bool:
    """For implementations that are used only if they were measured as fastest or requested."""
    return False


def by_library(call: Call) -> bool:
    """On a GPU many rows, and few rows of more than 16 bits, which the GEMV kernels do not support."""
    return on_cpu(call) or call.rows > GEMV_ROWS_GPU or call.dtype.itemsize > 2


def on_triton(call: Call) -> bool:
    return INTERPRETED or on_gpu(call)


def on_triton_integers(call: Call) -> bool:
    return on_triton(call) and call.dtype != torch.float64  # whose products of integers Triton 3.6 cannot compile


def on_triton_gemv(call: Call) -> bool:
    return on_triton(call) and call.dtype.itemsize == 2 and 1 <= call.rows <= GEMV_ROWS_GPU


def _copies_tiles(call: Call) -> bool:
    return on_triton(call) and call.dtype.itemsize == 2 and (INTERPRETED or has_tma(call.device))


def some_rows(call: Call) -> bool:
    return call.rows in SOME_ROWS_GPU and _copies_tiles(call)


def few_tiles(call: Call) -> bool:
    """More rows than the GEMV kernels take, but so few that a library product leaves much of a GPU idle."""
    return GEMV_ROWS_GPU < call.rows < SOME_ROWS_GPU.stop and _copies_tiles(call)


def half_tile(call: Call) -> bool:
    return call.rows in HALF_TILE_ROWS and call.rank <= 1024 and _copies_tiles(call)


def on_amx(call: Call) -> bool:
    return on_cpu(call) and call.dtype in (torch.bfloat16, torch.float32) and library.has_amx()


def on_avx512(call: Call) -> bool:
    return on_cpu(call) and call.dtype in (torch.bfloat16, torch.float32) and library.has_avx512()


def on_cpp(call: Call) -> bool:
    if not on_cpu(call) or library.library() is None:
        return False
    if call.rows > GEMV_ROWS:
        return call.dtype == torch.bfloat16 and library.has_amx()
    return call.dtype in (torch.bfloat16, torch.float32)


def is_vectorised(call: Call) -> bool:
    return on_cpu(call) and library.library() is not None and call.dtype in (torch.bfloat16, torch.float32)


def fits_on_chip(call: Call) -> bool:
    most = {2: 128, 4: 64}.get(call.dtype.itemsize, 0)  # a tile of 64 rows in the registers of one program, unspilled
    return on_triton(call) and call.rank <= most


def cpp(function: Callable[[], Callable], most: float = math.inf) -> Implementation:
    """The compiled layers, where they are faster than library products: up to `most` rows."""
    why = "compiled kernel: reads the factors once" + (f", up to {most} rows" if most < math.inf else "")
    return Implementation("cpp", function, why, on_cpp, lambda call: on_cpp(call) and call.rows <= most)


def triton_gemv(function: Callable[[], Callable]) -> Implementation:
    """The GEMV kernels of the GPU."""
    return Implementation("triton_gemv", function, "reads the weights once, and launches overlap", on_triton_gemv)


def check_settings() -> None:
    """Raise SettingError if SIEVE_KERNELS or SIEVE_KERNELS_ISA has an invalid value."""
    _check_override(_override())
    library.library()


def implementation(operator: str, x: Tensor, rank: int = 0) -> Callable:
    """The function that computes `operator` for an input x [..., n]."""
    return _load(operator, x.device, x.dtype, _rows(x), rank, _override())


def explain(operator: str, x: Tensor, rank: int = 0, arguments: Sequence | None = None) -> str:
    """One line: which implementation `operator` takes for an input x [..., n] of the given rank, and why.

    Args:
        arguments: the operator's arguments, as its implementations take them. With them it is called once, on copies,
            and the line names the config of every launch of a product and its source.
    """
    call = Call(x.device, x.dtype, _rows(x), rank)
    chosen, why = _choose(operator, call, _override())
    rank_text = f", rank {rank}" if rank else ""
    dtype = str(x.dtype).removeprefix("torch.")
    line = f"{operator} on {x.device}, {dtype}, {call.rows} rows{rank_text}: {chosen.name} ({why})"
    return line if arguments is None else "; ".join([line, *map(str, configs(chosen, arguments))])


def configs(implementation: Implementation, arguments: Sequence) -> list[ChosenConfig]:
    """The configs of an implementation's launches for these arguments, in order. It runs once, on copies."""
    with recorded() as launches:
        implementation.load()(*_copies(arguments))
    return list(dict.fromkeys(launches))


def _copies(arguments: Sequence) -> list:
    """The arguments with copied tensors, because some operators write to their arguments."""
    return [
        argument.clone()
        if isinstance(argument, Tensor)
        else type(argument)(_copies(argument))
        if isinstance(argument, (list, tuple))
        else argument
        for argument in arguments
    ]


@remembers
@lru_cache(maxsize=1024)
def _load(
    operator: str, device: torch.device, dtype: torch.dtype, rows: int, rank: int, override: str | None
) -> Callable:
    chosen, _ = _choose(operator, Call(device, dtype, rows, rank), override)
    return chosen.load()


def _override() -> str | None:
    """The implementation that SIEVE_KERNELS names, or None."""
    name = os.environ.get(VARIABLE)
    return RENAMED.get(name, name)


def _check_override(override: str | None) -> None:
    known = {implementation.name for implementations in TABLE.values() for implementation in implementations}
    if override and override not in known:
        raise SettingError(f"{VARIABLE}={override} is not one of {', '.join(sorted(known))}")


def _rows(x: Tensor) -> int:
    return x.numel() // max(1, x.shape[-1])


def _choose(operator: str, call: Call, override: str | None) -> tuple[Implementation, str]:
    """The implementation that a call takes, and the reason."""
    _check_override(override)
    able = {implementation.name: implementation for implementation in TABLE[operator] if implementation.supports(call)}
    if override in able:
        return able[override], f"{VARIABLE}={override}"
    fastest = tuning_cache.choice(operator, call.dtype, call.rows, call.rank, call.device)
    name = None if fastest is None else RENAMED.get(fastest.implementation, fastest.implementation)
    if name in able:
        return able[name], fastest.source
    chosen = next(implementation for implementation in able.values() if implementation.prefers(call))
    return chosen, chosen.why
