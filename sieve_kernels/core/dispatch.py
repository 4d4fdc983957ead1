"""Which implementation a call takes, and why.

Every operator lists its implementations beside its definition, and the first that should serve a call does: the order
follows from the cost models. The environment variable SIEVE_KERNELS (`torch`, `cpp`, `triton`, `triton_gemv`,
`triton_fused`, …) overrides it where the named implementation can serve the call. What `python -m
sieve_kernels.autotune` measured on this device (`tuning_cache.py`) comes in between. `explain` says what a call would
take, and from where.
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
"""Most rows of the compiled CPU kernels that need no AMX."""

GEMV_ROWS_GPU = 32
"""Most rows for which a GPU's time is that of reading the weights, where the kernels here are made for it: measured on
an H100, they are faster than the library's products at 16 rows and slower at 64."""

SOME_ROWS_GPU = range(129, 513)
"""Rows for which a library product of each member of a group leaves much of a GPU idle: launches for all members can
serve. Fewer rows do well on streams of their own, and products of more fill the GPU."""

HALF_TILE_ROWS = range(GEMV_ROWS_GPU + 1, 65)
"""Rows of which a tile of half the usual height holds all: small pairs of so many can take launches of their own."""


@dataclass(frozen=True)
class Call:
    """What the choice depends on: rows are tokens, rank is 0 for operators without one."""

    device: torch.device
    dtype: torch.dtype
    rows: int
    rank: int = 0


@dataclass(frozen=True)
class Implementation:
    """One way to compute an operator.

    Attributes:
        name: what SIEVE_KERNELS, the tuning cache and `explain` call it.
        function: gives the function; called when it is needed first, so that Triton is imported for GPUs alone.
        why: what speaks for it, in words.
        supports: whether it can serve a call.
        prefers: whether it should, where nothing was measured or asked for.
    """

    name: str
    function: Callable[[], Callable]
    why: str
    supports: Callable[[Call], bool]
    prefers: Callable[[Call], bool] = lambda call: True

    def load(self) -> Callable:
        """The function. ImportError, with what to do, where it needs Triton and there is none."""
        try:
            return self.function()
        except ModuleNotFoundError as error:
            if error.name != "triton":
                raise
            raise ImportError(
                f"the GPU path needs Triton: pip install triton, or set {VARIABLE}=torch for library products"
            ) from error


TABLE: dict[str, tuple[Implementation, ...]] = {}
"""The implementations of every operator, as `core.op.define_op` was given them."""

RENAMED = {"native": "cpp"}
"""Names that earlier versions gave implementations, in settings and in files of measured choices."""


def anywhere(call: Call) -> bool:
    return True


def on_cpu(call: Call) -> bool:
    return call.device.type == "cpu"


def on_gpu(call: Call) -> bool:
    return not on_cpu(call)


def never(call: Call) -> bool:
    """For what is to be measured first, or asked for."""
    return False


def by_library(call: Call) -> bool:
    """On a GPU many rows, and few of more than 16 bits, for which its kernels here are not made."""
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
    """More rows than the kernels for few, and so few that a product of them leaves much of a GPU idle."""
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
    """The GPU's kernels for few rows."""
    return Implementation("triton_gemv", function, "reads the weights once, and launches overlap", on_triton_gemv)


def check_settings() -> None:
    """SettingError where SIEVE_KERNELS or SIEVE_KERNELS_ISA has a value that every later call would refuse."""
    _check_override(_override())
    library.library()


def implementation(operator: str, x: Tensor, rank: int = 0) -> Callable:
    """The function that serves `operator` for an input x [..., n]."""
    return _load(operator, x.device, x.dtype, _rows(x), rank, _override())


def explain(operator: str, x: Tensor, rank: int = 0, arguments: Sequence | None = None) -> str:
    """One line: which implementation `operator` takes for an input x [..., n] of the given rank, and why.

    Args:
        arguments: the operator's, as its implementations take them. With them it is called once, on copies, and the
            line names the config of every launch of a product, and where it comes from.
    """
    call = Call(x.device, x.dtype, _rows(x), rank)
    chosen, why = _choose(operator, call, _override())
    rank_text = f", rank {rank}" if rank else ""
    dtype = str(x.dtype).removeprefix("torch.")
    line = f"{operator} on {x.device}, {dtype}, {call.rows} rows{rank_text}: {chosen.name} ({why})"
    return line if arguments is None else "; ".join([line, *map(str, configs(chosen, arguments))])


def configs(implementation: Implementation, arguments: Sequence) -> list[ChosenConfig]:
    """The configs that an implementation launches with for such arguments, in order. It runs once, on copies."""
    with recorded() as launches:
        implementation.load()(*_copies(arguments))
    return list(dict.fromkeys(launches))


def _copies(arguments: Sequence) -> list:
    """The arguments, with copies of the tensors among them: some operators write to theirs."""
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
    """What SIEVE_KERNELS names, None if nothing."""
    name = os.environ.get(VARIABLE)
    return RENAMED.get(name, name)


def _check_override(override: str | None) -> None:
    known = {implementation.name for implementations in TABLE.values() for implementation in implementations}
    if override and override not in known:
        raise SettingError(f"{VARIABLE}={override} is not one of {', '.join(sorted(known))}")


def _rows(x: Tensor) -> int:
    return x.numel() // max(1, x.shape[-1])


def _choose(operator: str, call: Call, override: str | None) -> tuple[Implementation, str]:
    """The implementation that a call takes, and why."""
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
