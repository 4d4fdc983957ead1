"""What the operators of the family demand of an input and a pair of factors."""

from torch import Tensor

from sieve_kernels.arguments import describe, require_alike, require_float


def check_factors(
    x: Tensor, A: Tensor, B: Tensor, bias: Tensor | None = None, names: tuple[str, str, str] = ("A", "B", "bias")
) -> None:
    """ValueError unless x [..., n], A [R, n], B [m, R] and bias [m] fit, with R ≥ 1; TypeError unless they are floats
    of one dtype. `names` are what the message calls the factors and the bias."""
    fits = A.dim() == 2 and B.dim() == 2 and x.dim() >= 1 and x.shape[-1] == A.shape[1] and A.shape[0] == B.shape[1]
    if not fits or A.shape[0] == 0 or (bias is not None and bias.shape != B.shape[:1]):
        a, b, c = names
        given = listing({"x": x, a: A, b: B, c: bias})
        raise ValueError(f"need x [..., n], {a} [R, n], {b} [m, R] and {c} [m] with R ≥ 1, got {given}")
    require_float("x", x)
    require_alike("x", x, names[0], A)
    require_alike("x", x, names[1], B)
    if bias is not None:
        require_alike("x", x, names[2], bias)


def listing(tensors: dict[str, Tensor | None]) -> str:
    """Shapes and dtypes of those that are there, for a message."""
    return ", ".join(f"{name} {describe(t)}" for name, t in tensors.items() if t is not None)
