"""Kernels for pruned language models: streaming Gram matrices and low-rank layers, for GPU (Triton) and CPU.

The package works without the rest of Sieve: it needs torch, NumPy and SciPy. Triton is imported when the first
tensor on a GPU arrives.
"""

from sieve_kernels.core.dispatch import check_settings
from sieve_kernels.errors import SettingError
from sieve_kernels.gram.ops import cross_gram_, gram_
from sieve_kernels.lowrank.linear import linear
from sieve_kernels.lowrank.lowrank_linear import lowrank_linear
from sieve_kernels.lowrank.lowrank_linear_group import lowrank_linear_group
from sieve_kernels.lowrank.lowrank_linear_pivoted import lowrank_linear_pivoted
from sieve_kernels.lowrank.lowrank_linear_population import lowrank_linear_population
from sieve_kernels.lowrank.lowrank_linear_quantized import lowrank_linear_quantized
from sieve_kernels.lowrank.quantize import dequantize_rows, quantize_rows
from sieve_kernels.mlp.lowrank_mlp import lowrank_mlp
from sieve_kernels.mlp.lowrank_swiglu import lowrank_swiglu
from sieve_kernels.pointwise.ops import act_mul, channel_sums, rms_norm, rotary

__all__ = [
    "SettingError",
    "act_mul",
    "channel_sums",
    "check_settings",
    "cross_gram_",
    "dequantize_rows",
    "gram_",
    "linear",
    "lowrank_linear",
    "lowrank_linear_group",
    "lowrank_linear_pivoted",
    "lowrank_linear_population",
    "lowrank_linear_quantized",
    "lowrank_mlp",
    "lowrank_swiglu",
    "quantize_rows",
    "rms_norm",
    "rotary",
]
