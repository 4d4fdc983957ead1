"""`lowrank_linear_population`: the function users call, its checks, and the registration of operator and gradients."""

import torch
from torch import Tensor

from sieve_kernels.core import dispatch
from sieve_kernels.core.checks import autocast, autocasts, require_same_device
from sieve_kernels.core.dispatch import Implementation
from sieve_kernels.core.op import define_op, differentiable_gradients, gradients_fake
from sieve_kernels.lowrank import backends, cpp_backend, reference, torch_backend
from sieve_kernels.lowrank.checks import check_factors, listing


def lowrank_linear_population(x: Tensor, A: Tensor, B: Tensor, ranks: Tensor) -> Tensor:
    """y[p] = (x[p] A[:r]ᵀ) B[:, :r]ᵀ with r = ranks[p]: candidates of a search, all slices of one nested pair.

    Differentiable in x, A and B, twice if need be. Under autocast it computes in autocast's dtype. On a GPU the host
    never reads `ranks`, so a graph of launches can be replayed with others.

    Args:
        x: inputs of every candidate [P, T, n].
        A: first factor [R, n].
        B: second factor [m, R].
        ranks: [P] int64 or int32, on x's device, each from 1 to R. On CPU others are refused; on a GPU, where a check
            would make the host wait, they are clamped.

    Returns:
        y [P, T, m] in x's dtype (float16, bfloat16, float32 or float64, the same for x, A and B).

    Raises:
        ValueError: shapes or devices do not fit, or (on CPU) a rank is out of range.
        TypeError: dtypes differ or are not floats, or ranks are not integers.

    Example:
        >>> x, A, B = torch.randn(3, 5, 64), torch.randn(16, 64), torch.randn(32, 16)
        >>> lowrank_linear_population(x, A, B, torch.tensor([4, 16, 8])).shape
        torch.Size([3, 5, 32])
    """
    if autocasts(x):
        x, A, B = (autocast(t) for t in (x, A, B))
    if x.dim() != 3 or ranks.shape != x.shape[:1]:
        raise ValueError(f"need x [P, T, n] and ranks [P], got {listing({'x': x, 'ranks': ranks})}")
    if ranks.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"ranks must be int64 or int32, got {listing({'ranks': ranks})}")
    check_factors(x, A, B)
    require_same_device("x", x, "ranks", ranks)
    return _population.op(x, A, B, ranks)


def _check_ranks(x: Tensor, A: Tensor, B: Tensor, ranks: Tensor) -> None:
    if x.device.type == "cpu" and ranks.numel():
        low, high = (int(r) for r in torch.aminmax(ranks))
        if low < 1 or high > A.shape[0]:
            raise ValueError(f"ranks must be between 1 and {A.shape[0]}, got {low} to {high}")


def _save(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _gradients(ctx, grad):
    *tensors, ranks = ctx.saved_tensors
    needed = ctx.needs_input_grad[:3]
    if torch.is_grad_enabled():  # a gradient of this gradient will be taken
        return *differentiable_gradients(lambda *t: reference.population(*t, ranks), tensors, needed, grad), None
    found = iter(_population_backward.op(grad, *tensors, ranks, needed))
    return *(next(found) if wanted else None for wanted in needed), None


_population_backward = define_op(
    "lowrank_linear_population_backward",
    "(Tensor grad, Tensor x, Tensor A, Tensor B, Tensor ranks, bool[] needed) -> Tensor[]",
    (
        Implementation(
            "torch", lambda: torch_backend.population_backward, "library products, rank by rank", dispatch.on_cpu
        ),
        Implementation(
            "triton",
            lambda: backends.triton().population.population_backward,
            "one launch per product",
            dispatch.on_triton,
        ),
    ),
    fake=gradients_fake,
    rank=lambda grad, x, A, *_: A.shape[0],
    first=1,
)
_population = define_op(
    "lowrank_linear_population",
    "(Tensor x, Tensor A, Tensor B, Tensor ranks) -> Tensor",
    (
        dispatch.cpp(lambda: cpp_backend.population),
        Implementation(
            "torch",
            lambda: torch_backend.population,
            "library products, candidates of one rank together",
            dispatch.on_cpu,
        ),
        Implementation(
            "triton",
            lambda: backends.triton().population.population,
            "all candidates in two launches",
            dispatch.on_triton,
        ),
    ),
    fake=lambda x, A, B, ranks: x.new_empty((*x.shape[:-1], B.shape[0])),
    rank=lambda x, A, B, ranks: A.shape[0],
    look=_check_ranks,
    backward=_gradients,
    save=_save,
)
