"""Checks of an input and a pair of factors, common to the low-rank operators."""

import torch
from torch import Tensor

from sieve_kernels.core.checks import describe, require_float, require_same_dtype


def check_factors(
    x: Tensor, A: Tensor, B: Tensor, bias: Tensor | None = None, names: tuple[str, str, str] = ("A", "B", "bias")
) -> None:
    """ValueError unless x [..., n], A [R, n], B [m, R] and bias [m] fit, with R ≥ 1; TypeError unless they are floats
    of one dtype. `names`: of the factors and the bias in the message."""
    fits = A.dim() == 2 and B.dim() == 2 and x.dim() >= 1 and x.shape[-1] == A.shape[1] and A.shape[0] == B.shape[1]
    if not fits or A.shape[0] == 0 or (bias is not None and bias.shape != B.shape[:1]):
        a, b, c = names
        given = listing({"x": x, a: A, b: B, c: bias})
        raise ValueError(f"need x [..., n], {a} [R, n], {b} [m, R] and {c} [m] with R ≥ 1, got {given}")
    require_float("x", x)
    require_same_dtype("x", x, names[0], A)
    require_same_dtype("x", x, names[1], B)
    if bias is not None:
        require_same_dtype("x", x, names[2], bias)


def listing(tensors: dict[str, Tensor | None]) -> str:
    """Shapes and dtypes of the tensors that are not None, for a message."""
    return ", ".join(f"{name} {describe(t)}" for name, t in tensors.items() if t is not None)


_MOST_REMEMBERED = 4096
_permutations: set[tuple] = set()


def check_permutation(permutation: Tensor) -> None:
    """ValueError unless a permutation [m] int64 on the CPU holds each of 0 … m - 1 once. On a GPU, where reading
    values would make the host wait, nothing is checked; the kernels skip invalid columns.

    A valid permutation is remembered until it changes. Tensors of inference mode have no version counter, so they are
    checked on every call.
    """
    if permutation.device.type != "cpu":
        return
    if permutation.is_inference():
        _require_each_once(permutation)
        return
    key = (permutation.data_ptr(), permutation._version, permutation.shape[0], permutation.stride(0))
    if key in _permutations:
        return
    _require_each_once(permutation)
    if len(_permutations) >= _MOST_REMEMBERED:
        _permutations.clear()
    _permutations.add(key)


def is_permutation(values: Tensor) -> bool:
    """Whether values [m] hold each of 0 … m - 1 once, on any device."""
    return torch.equal(values.sort().values, torch.arange(len(values), dtype=values.dtype, device=values.device))


def _require_each_once(permutation: Tensor) -> None:
    if not is_permutation(permutation):
        low, high = (int(value) for value in torch.aminmax(permutation))
        m = len(permutation)
        wrong = f"values from {low} to {high}" if low < 0 or high >= m else "a value twice"
        raise ValueError(f"permutation [{m}] must hold each of 0 to {m - 1} once, got {wrong}")
