"""Which implementation a call takes, and why: one readable table, first match wins.

The environment variable SIEVE_KERNELS (`torch`, `native`, `triton`, `triton_gemv`, `triton_fused`) overrides the
preference where the named implementation can serve the call. What `python -m sieve_kernels.autotune` measured on
this device (`tuning_cache.py`) comes next, and then the table, which follows from the cost models. `explain` says what
a call would take, and from where.
"""

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module

import torch
from torch import Tensor

from sieve_kernels.core import library, tuning_cache
from sieve_kernels.errors import SettingError

VARIABLE = "SIEVE_KERNELS"

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
"""Whether Triton kernels run in Triton's interpreter, on CPU tensors. Triton looks when it decorates a kernel, so the
variable must be set before this package is imported."""

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
class Rule:
    """An implementation ("module:function" inside the package), when it can serve a call, and when it should."""

    name: str
    function: str
    why: str
    can: Callable[[Call], bool]
    should: Callable[[Call], bool] = lambda call: True

    def load(self) -> Callable:
        module, function = self.function.split(":")
        try:
            return getattr(import_module(f"sieve_kernels.{module}"), function)
        except ModuleNotFoundError as error:
            if error.name != "triton":
                raise
            raise ImportError(
                f"the GPU path needs Triton: pip install triton, or set {VARIABLE}=torch for library products"
            ) from error


@lru_cache
def num_sms(device: torch.device) -> int:
    """Multiprocessors of a GPU; in the interpreter a number that lets small tests take every path."""
    return 4 if INTERPRETED else torch.cuda.get_device_properties(device).multi_processor_count


def _anywhere(call: Call) -> bool:
    return True


def _on_cpu(call: Call) -> bool:
    return call.device.type == "cpu"


def _on_gpu(call: Call) -> bool:
    return not _on_cpu(call)


def _never(call: Call) -> bool:
    """For what is to be measured first, or asked for."""
    return False


def _by_library(call: Call) -> bool:
    """On a GPU many rows, and few of more than 16 bits, for which its kernels here are not made."""
    return _on_cpu(call) or call.rows > GEMV_ROWS_GPU or call.dtype.itemsize > 2


def _triton(call: Call) -> bool:
    return INTERPRETED or _on_gpu(call)


def _triton_integers(call: Call) -> bool:
    return _triton(call) and call.dtype != torch.float64  # whose products of integers Triton 3.6 cannot compile


def _gemv(call: Call) -> bool:
    return _triton(call) and call.dtype.itemsize == 2 and 1 <= call.rows <= GEMV_ROWS_GPU


def _copies_tiles(call: Call) -> bool:
    narrow = _triton(call) and call.dtype.itemsize == 2
    return narrow and (INTERPRETED or (not torch.version.hip and torch.cuda.get_device_capability(call.device)[0] >= 9))


def _grouped(call: Call) -> bool:
    return call.rows in SOME_ROWS_GPU and _copies_tiles(call)


def _half_tile(call: Call) -> bool:
    return call.rows in HALF_TILE_ROWS and call.rank <= 1024 and _copies_tiles(call)


def _amx(call: Call) -> bool:
    return _on_cpu(call) and call.dtype in (torch.bfloat16, torch.float32) and library.has_amx()


def _compiled(call: Call) -> bool:
    if not _on_cpu(call) or library.library() is None:
        return False
    if call.rows > GEMV_ROWS:
        return call.dtype == torch.bfloat16 and library.has_amx()
    return call.dtype in (torch.bfloat16, torch.float32)


def _vectorised(call: Call) -> bool:
    return _on_cpu(call) and library.library() is not None and call.dtype in (torch.bfloat16, torch.float32)


def _fits_on_chip(call: Call) -> bool:
    most = {2: 128, 4: 64}.get(call.dtype.itemsize, 0)  # a tile of 64 rows in the registers of one program, unspilled
    return _triton(call) and call.rank <= most


def _gram(name: str) -> tuple[Rule, ...]:
    return (
        Rule("native", f"gram.cpp_backend:{name}", "compiled kernel on AMX tiles", _amx, _on_cpu),
        Rule(
            "torch", f"gram.torch_backend:{name}", "library products of the panels that are needed", _anywhere, _on_cpu
        ),
        Rule("triton", f"gram.triton_backend:{name}", "tiles that are needed, tokens split to fill the GPU", _triton),
    )


def _pointwise(name: str, *others: Rule) -> tuple[Rule, ...]:
    return (
        Rule("native", f"pointwise.cpp_backend:{name}", "compiled kernel: one pass", _vectorised),
        *others,
        _torch_pointwise(name),
    )


def _torch_pointwise(name: str) -> Rule:
    return Rule("torch", f"pointwise.reference:{name}", "torch's operators, which torch.compile fuses", _anywhere)


def _one_launch(name: str, module: str = "triton_backend") -> Rule:
    return Rule("triton", f"pointwise.{module}:{name}", "one launch", _triton, _on_gpu)


def _joint(name: str, module: str) -> tuple[Rule, ...]:
    """What stands between library products."""
    return _one_launch(name, module), _torch_pointwise(name)


def _native(function: str, most: float = math.inf) -> Rule:
    """The compiled layers, where they are faster than library products: up to `most` rows."""
    why = "compiled kernel: reads the factors once" + (f", up to {most} rows" if most < math.inf else "")
    return Rule("native", function, why, _compiled, lambda call: _compiled(call) and call.rows <= most)


def _few(function: str) -> Rule:
    """The GPU's kernels for few rows."""
    return Rule("triton_gemv", function, "reads the weights once, and launches overlap", _gemv)


TABLE: dict[str, tuple[Rule, ...]] = {
    "gram_": _gram("gram_"),
    "cross_gram_": _gram("cross_gram_"),
    "rms_norm": _pointwise("rms_norm", _one_launch("rms_norm")),
    "rotary": _pointwise("rotary", _one_launch("rotary")),
    "channel_sums": _pointwise("channel_sums"),
    "act_mul": _joint("act_mul", "triton_columns"),
    "act_mul_backward": _joint("act_mul_backward", "triton_columns"),
    "gather_columns": _joint("gather_columns", "triton_columns"),
    "join_columns": _joint("join_columns", "triton_columns"),
    "lowrank_linear": (
        _native("lowrank.cpp_backend:linear"),
        Rule(
            "triton_grouped",
            "lowrank.triton.grouped:pair",
            "tiles of few rows, sums split to fill the GPU",
            _half_tile,
            _never,
        ),
        Rule("torch", "lowrank.torch_backend:linear", "two library products", _anywhere, _by_library),
        _few("lowrank.triton.gemv:linear"),
        Rule("triton", "lowrank.triton.linear:linear", "two launches inside one operator", _triton),
        Rule(
            "triton_fused",
            "lowrank.triton.linear:linear_fused",
            "the r-wide intermediate stays on chip",
            _fits_on_chip,
            _never,
        ),
    ),
    "lowrank_linear_backward": (
        Rule("torch", "lowrank.torch_backend:linear_backward", "library products", _anywhere),
        Rule("triton", "lowrank.triton.linear:linear_backward", "one launch per product", _triton),
    ),
    "lowrank_linear_group": (
        _native("lowrank.cpp_backend:group"),
        Rule("torch", "lowrank.torch_backend:group", "library products, blocks of tokens through all layers", _on_cpu),
        Rule(
            "triton_grouped",
            "lowrank.triton.grouped:group",
            "tiles of all layers side by side, sums split to fill the GPU",
            _grouped,
        ),
        Rule("torch", "lowrank.torch_backend_gpu:group", "library products", _on_gpu, _by_library),
        _few("lowrank.triton.gemv:group"),
        Rule("triton", "lowrank.triton.group:group", "two launches for all layers", _triton),
    ),
    "lowrank_linear_group_backward": (
        Rule("torch", "lowrank.torch_backend:group_backward", "library products", _anywhere),
        Rule("triton", "lowrank.triton.group:group_backward", "one launch per kind of product", _triton),
    ),
    "linear": (
        _native("lowrank.cpp_backend:dense", most=64),
        Rule("torch", "lowrank.torch_backend:dense", "library product", _anywhere, _by_library),
        _few("lowrank.triton.gemv:dense"),
        Rule("triton", "lowrank.triton.dense:linear", "sums in shares where rows are few", _triton),
    ),
    "linear_backward": (
        Rule("torch", "lowrank.torch_backend:dense_backward", "library products", _anywhere),
        Rule("triton", "lowrank.triton.dense:linear_backward", "one launch per product", _triton),
    ),
    "lowrank_linear_population": (
        _native("lowrank.cpp_backend:population"),
        Rule("torch", "lowrank.torch_backend:population", "library products, candidates of one rank together", _on_cpu),
        Rule("triton", "lowrank.triton.population:population", "all candidates in two launches", _triton),
    ),
    "lowrank_linear_population_backward": (
        Rule("torch", "lowrank.torch_backend:population_backward", "library products, rank by rank", _on_cpu),
        Rule("triton", "lowrank.triton.population:population_backward", "one launch per product", _triton),
    ),
    "lowrank_linear_quantized": (
        _native("lowrank.cpp_backend:quantized", most=GEMV_ROWS),
        Rule(
            "torch",
            "lowrank.torch_backend:quantized",
            "library products, one factor at a time as floats",
            _anywhere,
            lambda call: _on_cpu(call) or call.rows > GEMV_ROWS_GPU or not _triton_integers(call),
        ),
        _few("lowrank.triton.gemv_quantized:quantized"),
        Rule("triton", "lowrank.triton.quantized:quantized", "dequantised in registers", _triton_integers),
    ),
    "lowrank_swiglu": (
        _native("mlp.cpp_backend:swiglu"),
        Rule("torch", "mlp.torch_backend:swiglu", "library products, activated in place, block by block", _on_cpu),
        Rule("torch", "mlp.torch_backend_gpu:swiglu", "library products, activated in one pass", _on_gpu, _by_library),
        _few("mlp.triton_gemv:swiglu"),
        Rule("triton", "mlp.triton_backend:swiglu", "gate and up meet in registers", _triton),
    ),
    "lowrank_swiglu_backward": (
        Rule("torch", "mlp.torch_backend:swiglu_backward", "library products", _anywhere),
        Rule("triton", "mlp.triton_backend:swiglu_backward", "gate and up recomputed in registers", _triton),
    ),
    "lowrank_mlp": (
        _native("mlp.cpp_backend:mlp"),
        Rule(
            "torch",
            "mlp.torch_backend_gpu:mlp",
            "library products, activated and put in order in one pass",
            _on_gpu,
            _by_library,
        ),
        _few("mlp.triton_gemv:mlp"),
        Rule("parts", "mlp.lowrank_mlp:parts", "the operators of its parts", _anywhere),
    ),
    "lowrank_linear_pivoted": (
        _native("lowrank.cpp_backend:pivoted"),
        Rule("torch", "lowrank.torch_backend:pivoted", "library products", _on_cpu),
        Rule(
            "torch",
            "lowrank.torch_backend_gpu:pivoted",
            "library products, and one pass that puts columns in order or makes the second factor whole",
            _on_gpu,
            _by_library,
        ),
        _few("lowrank.triton.gemv:pivoted"),
        Rule("triton", "lowrank.triton.pivoted:pivoted", "two launches that write where y is", _triton),
        Rule(
            "torch_expanded",
            "lowrank.torch_backend_gpu:pivoted_expanded",
            "library products with the identity's rows among the others",
            _anywhere,
            _never,
        ),
    ),
    "lowrank_linear_pivoted_backward": (
        Rule("torch", "lowrank.torch_backend:pivoted_backward", "library products", _on_cpu),
        Rule("torch", "lowrank.torch_backend_gpu:pivoted_backward", "library products after one gather", _on_gpu),
        Rule("triton", "lowrank.triton.pivoted:pivoted_backward", "one launch per product", _triton),
    ),
}


def check_settings() -> None:
    """SettingError where SIEVE_KERNELS or SIEVE_KERNELS_ISA has a value that every later call would refuse."""
    _check_override(os.environ.get(VARIABLE))
    library.library()


def implementation(operator: str, x: Tensor, rank: int = 0) -> Callable:
    """The function that serves `operator` for an input x [..., n]."""
    return _load(operator, x.device, x.dtype, _rows(x), rank, os.environ.get(VARIABLE))


def explain(operator: str, x: Tensor, rank: int = 0) -> str:
    """One line: which implementation `operator` takes for an input x [..., n] of the given rank, and why."""
    call = Call(x.device, x.dtype, _rows(x), rank)
    rule, why = _choose(operator, call, os.environ.get(VARIABLE))
    rank_text = f", rank {rank}" if rank else ""
    dtype = str(x.dtype).removeprefix("torch.")
    return f"{operator} on {x.device}, {dtype}, {call.rows} rows{rank_text}: {rule.name} ({why})"


@lru_cache(maxsize=1024)
def _load(
    operator: str, device: torch.device, dtype: torch.dtype, rows: int, rank: int, override: str | None
) -> Callable:
    rule, _ = _choose(operator, Call(device, dtype, rows, rank), override)
    return rule.load()


def _check_override(override: str | None) -> None:
    known = {rule.name for table in TABLE.values() for rule in table}
    if override and override not in known:
        raise SettingError(f"{VARIABLE}={override} is not one of {', '.join(sorted(known))}")


def _rows(x: Tensor) -> int:
    return x.numel() // max(1, x.shape[-1])


def _choose(operator: str, call: Call, override: str | None) -> tuple[Rule, str]:
    """The rule that a call takes, and why."""
    rules = TABLE[operator]
    _check_override(override)
    able = {rule.name: rule for rule in rules if rule.can(call)}
    if override in able:
        return able[override], f"{VARIABLE}={override}"
    fastest = tuning_cache.choice(operator, call.dtype, call.rows, call.rank, call.device)
    if fastest is not None and fastest.implementation in able:
        return able[fastest.implementation], fastest.source
    rule = next(rule for rule in able.values() if rule.should(call))
    return rule, rule.why
