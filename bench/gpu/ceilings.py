"""The device's limits, bytes copied and bf16 operations per second, measured in the same run as the rest."""

from functools import cache

import torch

from bench.gpu import clock
from bench.gpu.job import Job, Place
from bench.gpu.sizes import Sizes
from sieve_kernels.core.wide_products import wide_products


def jobs(sizes: Sizes) -> list[Job]:
    def copy(place: Place) -> dict[str, float]:
        return {"ceiling.copy_gbs": copied_bytes(place.device, sizes.copied) / 1e9}

    def product(place: Place) -> dict[str, float]:
        return {"ceiling.bf16_tflops": product_flops(place.device, sizes.square) / 1e12}

    return [Job("copy", ("ceiling.copy_gbs",), copy), Job("product", ("ceiling.bf16_tflops",), product)]


@cache
def copied_bytes(device: torch.device, size: int) -> float:
    """Bytes per second, reads plus writes, when a tensor of `size` bytes is copied on the device."""
    source = torch.randn(size // 2, device=device, dtype=torch.bfloat16)  # zeros would draw less power: a higher clock
    target = torch.empty_like(source)
    target.copy_(source)
    return 2 * source.nbytes / min(clock.seconds(lambda: target.copy_(source), device, 3) for _ in range(7))


@cache
def product_flops(device: torch.device, side: int) -> float:
    """Operations per second of the product of two bf16 matrices [side, side], in float32 where a CPU is faster so."""
    x, product = torch.randn(side, side, device=device).bfloat16(), wide_products(torch.matmul)
    product(x, x)
    return 2 * side**3 / min(clock.seconds(lambda: product(x, x), device, 5) for _ in range(5))
