"""The goals of the table on an H100 or H200, and cells that are computed from other cells."""

import re
from collections.abc import Mapping

WANTED: dict[str, tuple[str, float]] = {
    "tests.failed": ("≤", 0),
    "tests.not_run": ("≤", 0),
    "host_over_two.lowrank_linear": ("≤", 1.0),
    "host_over_two.lowrank_linear_group": ("≤", 1.5),
    "host_over_two.lowrank_mlp": ("≤", 1.5),
    "pair_over_dense.t1.4096x4096": ("≤", 0.55),
    "pair_over_dense.t16.4096x4096": ("≤", 0.55),
    "pair_over_dense.t1.14336x4096": ("≤", 0.60),
    "pair_over_dense.t16.14336x4096": ("≤", 0.60),
    "pair_over_dense.t1.4096x14336": ("≤", 0.60),
    "pair_over_dense.t16.4096x14336": ("≤", 0.60),
    "pivoted_over_pair.t1.4096x4096": ("≤", 1.05),
    "pivoted_over_pair.t16.4096x4096": ("≤", 1.05),
    "pivoted_over_pair.t1.14336x4096": ("≤", 1.05),
    "pivoted_over_pair.t16.14336x4096": ("≤", 1.05),
    "pivoted_over_pair.t1.4096x14336": ("≤", 1.05),
    "pivoted_over_pair.t16.4096x14336": ("≤", 1.05),
    "pair_over_two.worst": ("≤", 1.05),
    "pair_over_two.best": ("≤", 0.95),
    "group_over_best.t1": ("≤", 0.9),
    "group_over_best.t16": ("≤", 0.9),
    "group_over_best.t64": ("≤", 0.9),
    "group_over_best.t256": ("≤", 1.05),
    "group_over_best.t2048": ("≤", 1.05),
    "group_over_best.t8192": ("≤", 1.05),
    "mlp_over_best.t1": ("≤", 0.9),
    "mlp_over_best.t16": ("≤", 0.9),
    "mlp_over_best.t64": ("≤", 0.9),
    "mlp_over_best.t256": ("≤", 1.05),
    "mlp_over_best.t2048": ("≤", 1.05),
    "mlp_over_best.t8192": ("≤", 1.05),
    "int8_over_bf16.t1.4096x4096": ("≤", 0.8),
    "int8_over_bf16.t1.14336x4096": ("≤", 0.68),
    "of_bandwidth.t1.4096x4096": ("≥", 0.45),
    "of_bandwidth.t1.14336x4096": ("≥", 0.68),
    "gram_over_library.576": ("≤", 1.0),
    "gram_over_library.1536": ("≤", 0.9),
    "gram_over_library.4096": ("≤", 0.7),
    "gram_over_library.8192": ("≤", 0.65),
    "decoder.graph.b1": ("≥", 1.5),
    "decoder.graph.b16": ("≥", 1.25),
    "decoder.graph.b128": ("≥", 1.05),
    "decoder.graph.b1.of_bound": ("≥", 0.85),
    "decoder.graph.b16.of_bound": ("≥", 0.85),
    "decoder.graph.b128.of_bound": ("≥", 0.85),
    "decoder.eager.b1": ("≥", 1.0),
    "prefill.1x2048": ("≥", 1.35),
    "prefill.8x2048": ("≥", 1.5),
}
"""Ratios of times to the library's should be small; ratios of tokens/s should be large."""

EXTREMES = {"pair_over_two.worst": max, "pair_over_two.best": min}
_MANY = re.compile(r"pair_over_two\.t\d+\.")


def derived(cells: Mapping[str, float]) -> tuple[dict[str, float], dict[str, str]]:
    """The worst and the best ratio for many rows, and the cells that have them."""
    many = {name: value for name, value in cells.items() if _MANY.match(name)}
    if not many:
        return {}, {}
    which = {name: extreme(many, key=many.get) for name, extreme in EXTREMES.items()}
    return {name: many[cell] for name, cell in which.items()}, which


def holds(name: str, value: float) -> bool:
    """Whether a cell meets its goal."""
    sign, bound = WANTED[name]
    return value <= bound if sign == "≤" else value >= bound
