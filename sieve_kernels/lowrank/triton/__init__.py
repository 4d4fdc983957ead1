"""Triton kernels of the low-rank family, and the functions that launch them."""

from sieve_kernels.lowrank.triton import (
    dense,
    expand,
    gemv,
    gemv_quantized,
    group,
    grouped,
    linear,
    pivoted,
    population,
    quantized,
)

__all__ = [
    "dense",
    "expand",
    "gemv",
    "gemv_quantized",
    "group",
    "grouped",
    "linear",
    "pivoted",
    "population",
    "quantized",
]
