"""Activations and their slopes in Triton, for the kernels of gated layers."""

import triton
import triton.language as tl


@triton.jit
def activate(v, ACTIVATION: tl.constexpr):
    """act(v), which keeps NaN."""
    if ACTIVATION == "silu":
        return v / (1.0 + tl.exp(-v))
    if ACTIVATION == "gelu":
        return v * 0.5 * (1.0 + tl.erf(v * 0.7071067811865476))
    if ACTIVATION == "gelu_tanh":  # ½ (1 + tanh u) = 1 / (1 + e⁻²ᵘ)
        return v / (1.0 + tl.exp(-1.5957691216057308 * (v + 0.044715 * v * v * v)))
    return tl.where(v < 0, 0.0, v)


@triton.jit
def slope(v, ACTIVATION: tl.constexpr):
    """act′(v), which keeps NaN."""
    if ACTIVATION == "silu":
        s = 1.0 / (1.0 + tl.exp(-v))
        return s * (1.0 + v * (1.0 - s))
    if ACTIVATION == "gelu":
        density = 0.3989422804014327 * tl.exp(-0.5 * v * v)
        return 0.5 * (1.0 + tl.erf(v * 0.7071067811865476)) + v * density
    if ACTIVATION == "gelu_tanh":
        s = 1.0 / (1.0 + tl.exp(-1.5957691216057308 * (v + 0.044715 * v * v * v)))
        return s + v * s * (1.0 - s) * 1.5957691216057308 * (1.0 + 0.134145 * v * v)
    return tl.where(v > 0, 1.0, tl.where(v <= 0, 0.0, v))
