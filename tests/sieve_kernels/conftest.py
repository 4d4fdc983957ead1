"""Fixtures: the device of the kernels, the implementation under test, and memory that reveals unwritten elements."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch

from sieve_kernels.core import decisions, dispatch
from sieve_kernels.core import device as devices
from sieve_kernels.lowrank import training


@pytest.fixture
def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(autouse=True)
def poisoned_memory():
    """Fill the results of `torch.empty` and similar functions with NaN, so that reading unwritten memory is noticed."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    assert torch.zeros(1).new_empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


AS_ON_GPU = ("torch_gpu", "torch_training")


@pytest.fixture
def implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Make dispatch take the implementation named by the test's parameters.

    "torch_gpu": torch's on a GPU, which CPU tensors take too where Triton's kernels beside the products are
    interpreted. "torch_training": likewise, and where gradients are wanted, as for many rows.
    """
    if request.param == "torch_gpu" and not dispatch.INTERPRETED:
        pytest.skip("a GPU's tensors take it as torch")
    monkeypatch.setenv("SIEVE_KERNELS", "torch" if request.param in AS_ON_GPU else request.param)
    if request.param == "torch_training":
        monkeypatch.setattr(training, "_many_on_gpu", lambda x: True)
        monkeypatch.setattr(training, "FEW_ELEMENTS", 0)
    if request.param in AS_ON_GPU and dispatch.INTERPRETED:
        for operator, listed in dispatch.TABLE.items():
            monkeypatch.setitem(dispatch.TABLE, operator, tuple(map(_as_on_gpu, listed)))
    decisions.forget()
    yield request.param
    decisions.forget()


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Make kernels see devices with other properties: pretend(num_sms=132)."""
    real = devices.properties

    def change(**changes: object) -> None:
        monkeypatch.setattr(devices, "properties", lambda device: replace(real(device), **changes))
        decisions.forget()

    yield change
    decisions.forget()


def _as_on_gpu(one: dispatch.Implementation) -> dispatch.Implementation:
    if one.name == "torch" and one.supports is dispatch.on_cpu:
        return replace(one, supports=dispatch.never)
    return replace(one, supports=dispatch.anywhere) if one.supports is dispatch.on_gpu else one
