"""What moves and renames must not change: stored results, for each backend that can serve here."""

import pytest
import torch
from golden import kernels

triton = pytest.importorskip("triton")


@pytest.mark.parametrize("implementation", ["", "torch", "cpp", "triton", "triton_gemv"], indirect=True)
def test_outputs(implementation, device):
    """Of whole numbers: exact, whatever computes them. Of what the interpreter would take long for, a part."""
    slow = implementation.startswith("triton") and device.type == "cpu"
    part = ((torch.bfloat16,), (5,)) if slow else (kernels.DTYPES, kernels.ROWS)
    stored, found = kernels.stored()["outputs"], kernels.outputs(device, *part)
    assert found == {name: digest for name, digest in stored.items() if name in found}
    assert slow or found.keys() == stored.keys()


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="all other tests compile the kernels, for the GPU at hand")
def test_programs():
    """After a change on purpose: python -m tests.golden.kernels programs."""
    stored = kernels.stored()["programs"]
    if stored["triton"] != triton.__version__:
        pytest.skip(f"stored for Triton {stored['triton']}")
    assert kernels.made("programs") == stored
