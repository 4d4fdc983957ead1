"""Gram matrices, out += xᵀ x, against the library's product, which computes both triangles."""

from functools import partial

import torch
from torch import Tensor

import sieve_kernels
from bench.gpu import clock
from bench.gpu.job import Job, Place
from bench.gpu.layers import Layers, check
from bench.gpu.sizes import Sizes


def jobs(sizes: Sizes) -> list[Job]:
    kinds = ("", torch.bfloat16), ("fp32.", torch.float32)
    return [_job(T, n, prefix, dtype, sizes) for prefix, dtype in kinds for T, n in sizes.grams]


def _job(T: int, n: int, prefix: str, dtype: torch.dtype, sizes: Sizes) -> Job:
    cells = [f"gram_over_library.{prefix}{n}", f"us.gram.{prefix}{n}", f"us.gram_library.{prefix}{n}"]

    @torch.no_grad()
    def run(place: Place) -> dict[str, float]:
        layers = Layers(place.device, sizes.multiple)
        inputs = clock.copies(lambda: (layers.random(T, n).to(dtype),), sizes.cold, 8 * n * n)
        ours, theirs = (torch.zeros(n, n, device=place.device) for _ in range(2))
        contenders = {
            "ours": [partial(sieve_kernels.gram_, ours, *x) for x in inputs],
            "library": [partial(_library, theirs, *x) for x in inputs],
        }
        check("gram_", contenders["ours"][0](), contenders["library"][0]())
        taken = clock.cold_seconds(contenders, place.device, sizes.rounds)
        numbers = taken["ours"] / taken["library"], 1e6 * taken["ours"], 1e6 * taken["library"]
        return dict(zip(cells, numbers, strict=True))

    return Job(f"gram.{prefix}{n}", tuple(cells), run)


def _library(out: Tensor, x: Tensor) -> Tensor:
    """The library's bf16 product with a float32 result. A CPU has no such product."""
    if x.dtype == torch.bfloat16 and x.is_cuda:
        return out.add_(torch.mm(x.T, x, out_dtype=torch.float32))
    wide = x.float()
    return out.addmm_(wide.T, wide)
