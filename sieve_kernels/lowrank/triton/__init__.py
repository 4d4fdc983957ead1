"""Triton kernels of the low-rank family, and the functions that launch them."""

from sieve_kernels.lowrank.triton import (
    dense,
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
    "gemv",
    "gemv_quantized",
    "group",
    "grouped",
    "linear",
    "pivoted",
    "population",
    "quantized",
]
