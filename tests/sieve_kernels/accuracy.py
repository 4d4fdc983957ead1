"""The accuracy rule for every kernel: nearly as close to the float64 result as torch in the same dtype."""

from torch import Tensor


def error(value: Tensor, exact: Tensor, terms: Tensor | None = None) -> float:
    """Frobenius distance to the float64 result, relative to the norm of that or of `terms`."""
    whole = exact if terms is None else terms
    return ((value.double() - exact).norm() / whole.norm().clamp_min(1e-300)).item()


def assert_accurate(ours: Tensor, exact: Tensor, torchs: Tensor, terms: Tensor | None = None) -> None:
    """Our error is at most twice torch's own, plus 1e-6.

    terms: what the result would be if no terms of its sums cancelled. Rounding is relative to these.
    """
    assert ours.shape == exact.shape
    assert ours.dtype == torchs.dtype
    distance, allowed = error(ours, exact, terms), 2 * error(torchs, exact, terms) + 1e-6
    assert distance <= allowed, f"error {distance:.2e}, allowed {allowed:.2e}"
