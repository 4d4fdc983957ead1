"""The accuracy rule for every kernel: nearly as close to the float64 result as torch in the same dtype."""

from torch import Tensor


def error(value: Tensor, exact: Tensor) -> float:
    """Relative Frobenius distance to the float64 result."""
    return ((value.double() - exact).norm() / exact.norm().clamp_min(1e-300)).item()


def assert_accurate(ours: Tensor, exact: Tensor, torchs: Tensor) -> None:
    """Our error is at most twice torch's own, plus 1e-6."""
    assert ours.shape == exact.shape
    assert ours.dtype == torchs.dtype
    allowed = 2 * error(torchs, exact) + 1e-6
    assert error(ours, exact) <= allowed, f"error {error(ours, exact):.2e}, allowed {allowed:.2e}"
