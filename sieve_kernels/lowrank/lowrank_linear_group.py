"""`lowrank_linear_group`: the function users call, its checks, and the registration of operator and gradients."""

from collections.abc import Sequence

import torch
from torch import Tensor

from sieve_kernels.core import dispatch
from sieve_kernels.core.checks import as_rows, autocast, autocasts
from sieve_kernels.core.dispatch import Implementation
from sieve_kernels.core.op import define_op, differentiable_gradients, gradients_fake
from sieve_kernels.core.plans import Direct, Plans, looking, prepared
from sieve_kernels.lowrank import backends, cpp_backend, reference, torch_backend, training
from sieve_kernels.lowrank.checks import check_factors, check_permutation
from sieve_kernels.lowrank.lowrank_linear_pivoted import check_pivoted, lowrank_linear_pivoted


def lowrank_linear_group(
    x: Tensor,
    As: Sequence[Tensor],
    Bs: Sequence[Tensor],
    biases: Sequence[Tensor | None] | None = None,
    permutations: Sequence[Tensor] | None = None,
) -> tuple[Tensor, ...]:
    """Several low-rank layers of one input, y_i = (x A_iᵀ) B_iᵀ + bias_i: query, key and value in one pass over x.

    Differentiable in all tensors, twice if need be; the r-wide intermediates are recomputed, not stored (but kept for
    many rows on a GPU). Under autocast it computes in autocast's dtype, as `F.linear` does.

    Args:
        x: inputs [..., n].
        As: first factors, each [r_i, n]; ranks may differ.
        Bs: second factors, each [m_i, r_i], as many.
        biases: None, or as many, each [m_i] or None.
        permutations: None, or as many, each [m_i] int64: then the layers are pivoted pairs as
            `lowrank_linear_pivoted` has them, and the second factors are their C_i [m_i - r_i, r_i].

    Returns:
        The outputs, each [..., m_i] in x's dtype (float16, bfloat16, float32 or float64, the same for all arguments).

    Raises:
        ValueError: counts, shapes or devices do not fit, or (on CPU) a permutation is none.
        TypeError: dtypes differ or are not floats, or a permutation is not int64.

    Example:
        >>> x, As, Bs = torch.randn(5, 64), [torch.randn(r, 64) for r in (16, 8)], [torch.randn(32, r) for r in (16, 8)]
        >>> [y.shape for y in lowrank_linear_group(x, As, Bs)]
        [torch.Size([5, 32]), torch.Size([5, 32])]
    """
    if not torch.compiler.is_compiling():
        ys = _group.direct(x, As, Bs, biases, permutations)
        if ys is not None:
            return tuple(ys)
    _check_counts(As, Bs, biases, permutations)
    if permutations is not None:
        return tuple(_one_by_one(x, As, Bs, biases, permutations))
    if autocasts(x):
        x, As, Bs = autocast(x), [autocast(A) for A in As], [autocast(B) for B in Bs]
        biases = None if biases is None else [autocast(bias) for bias in biases]
    _check(x, As, Bs, biases)
    if training.by_library(x, *As, *Bs, *(biases or ())):
        return tuple(training.linear(x, *of) for of in zip(As, Bs, biases or [None] * len(As), strict=True))
    return tuple(_group.op(x, list(As), list(Bs), _biases(Bs, biases)))


def _check_counts(
    As: Sequence[Tensor],
    Bs: Sequence[Tensor],
    biases: Sequence[Tensor | None] | None,
    permutations: Sequence[Tensor] | None,
) -> None:
    given = [len(of) for of in (As, Bs, biases, permutations) if of is not None]
    if min(given) < 1 or min(given) < max(given):
        counts = f"{len(As)} As, {len(Bs)} Bs and {'no' if biases is None else len(biases)} biases"
        if permutations is not None:
            counts += f", {len(permutations)} permutations"
        raise ValueError(
            f"need as many As as Bs, and as many biases and permutations if any, at least one each, got {counts}"
        )


def _check(x: Tensor, As: Sequence[Tensor], Bs: Sequence[Tensor], biases: Sequence[Tensor | None] | None) -> None:
    for i, (A, B) in enumerate(zip(As, Bs, strict=True)):
        names = f"As[{i}]", f"Bs[{i}]", f"biases[{i}]"
        check_factors(x, A, B, None if biases is None else biases[i], names)


def _biases(Bs: Sequence[Tensor], biases: Sequence[Tensor | None] | None) -> list[Tensor]:
    """Zeros for missing biases, because autograd accepts only lists of tensors; an empty list if all are missing."""
    if biases is None or all(bias is None for bias in biases):
        return []
    return [B.new_zeros(B.shape[0]) if bias is None else bias for bias, B in zip(biases, Bs, strict=True)]


def _one_by_one(x, As, Bs, biases, permutations):
    biases = biases or [None] * len(As)
    return [lowrank_linear_pivoted(x, *of) for of in zip(As, Bs, permutations, biases, strict=True)]


def _prepare(x, As, Bs, biases, permutations):
    """The group without PyTorch's dispatcher: one implementation for all layers if one supports them, else one per
    layer."""
    _check_counts(As, Bs, biases, permutations)
    rank = max(A.shape[0] for A in As)
    function = dispatch.implementation("lowrank_linear_group", x, rank)
    if permutations is None:
        _check(x, As, Bs, biases)
        whole = prepared(function, x, As, Bs, _biases(Bs, biases) or None)
        return lambda x, As, Bs, biases, _: whole(x, As, Bs, _biases(Bs, biases) or None)
    for of in zip(As, Bs, permutations, biases or [None] * len(As), strict=True):
        check_pivoted(x, *of)
    if isinstance(function, Plans) and not any(bias is None for bias in biases or ()):
        whole = function.prepare(x, As, Bs, biases, permutations)
        return looking(_look, whole) if x.is_cpu else whole
    return _one_by_one


def _look(x, As, Bs, biases, permutations):
    for permutation in permutations:
        check_permutation(permutation)


def _run(x, As, Bs, biases):
    rank = max(A.shape[0] for A in As)
    return dispatch.implementation("lowrank_linear_group", x, rank)(x, As, Bs, biases or None)


def _save(ctx, inputs, output):
    x, As, Bs, _ = inputs
    ctx.save_for_backward(x, *As, *Bs)


def _gradients(ctx, grads):
    x, *factors = ctx.saved_tensors
    count = len(factors) // 2
    As, Bs = factors[:count], factors[count:]
    x_needed, As_needed, Bs_needed, biases_needed = ctx.needs_input_grad
    needed = [x_needed, *As_needed, *Bs_needed]
    if torch.is_grad_enabled():  # a gradient of this gradient will be taken
        gradients = differentiable_gradients(
            lambda x, *factors: reference.group(x, factors[:count], factors[count:]), (x, *As, *Bs), needed, grads
        )
    else:
        found = iter(_group_backward.op(grads, x, As, Bs, needed))
        gradients = [next(found) if wanted else None for wanted in needed]
    of_biases = [as_rows(g).sum(0) if wanted else None for g, wanted in zip(grads, biases_needed, strict=False)]
    return gradients[0], gradients[1 : 1 + count], gradients[1 + count :], of_biases


_group_backward = define_op(
    "lowrank_linear_group_backward",
    "(Tensor[] grads, Tensor x, Tensor[] As, Tensor[] Bs, bool[] needed) -> Tensor[]",
    (
        Implementation("torch", lambda: torch_backend.group_backward, "library products", dispatch.anywhere),
        Implementation(
            "triton",
            lambda: backends.triton().group.group_backward,
            "one launch per kind of product",
            dispatch.on_triton,
        ),
    ),
    fake=lambda grads, x, As, Bs, needed: gradients_fake(grads, x, *As, *Bs, needed),
    rank=lambda grads, x, As, *_: max(A.shape[0] for A in As),
    first=1,
)
_group = define_op(
    "lowrank_linear_group",
    "(Tensor x, Tensor[] As, Tensor[] Bs, Tensor[] biases) -> Tensor[]",
    (
        dispatch.cpp(lambda: cpp_backend.group),
        Implementation(
            "torch",
            lambda: torch_backend.group,
            "library products, blocks of tokens through all layers",
            dispatch.on_cpu,
        ),
        Implementation(
            "triton_grouped",
            lambda: backends.triton().grouped.group,
            "tiles of all layers side by side, sums split to fill the GPU",
            dispatch.some_rows,
        ),
        Implementation(
            "torch", lambda: backends.torch_gpu().group, "library products", dispatch.on_gpu, dispatch.by_library
        ),
        dispatch.triton_gemv(lambda: backends.triton().gemv.group),
        Implementation(
            "triton", lambda: backends.triton().group.group, "two launches for all layers", dispatch.on_triton
        ),
    ),
    fake=lambda x, As, Bs, biases: [x.new_empty((*x.shape[:-1], B.shape[0])) for B in Bs],
    run=_run,
    direct=Direct(_prepare),
    backward=_gradients,
    save=_save,
)
