"""Launches of kernels that copy tiles: what they hand to the compiled kernel, seen without a GPU."""

import pytest
import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from sieve_kernels.core.launch import TileLaunch


@triton.jit
def scale_kernel(x_desc, y_desc, n, factor, BLOCK: tl.constexpr):
    for start in range(0, n, BLOCK):
        y_desc.store([0, start], x_desc.load([0, start]) * factor)


@pytest.fixture
def launch():
    return TileLaunch(scale_kernel, (1,), ((8, 16), (8, 16)), (40, 3), BLOCK=16, num_warps=4)


@pytest.mark.skipif(torch.cuda.is_available(), reason="looks on in the interpreter")
def test_first_call_goes_through_triton(launch):
    x, y = torch.randn(8, 40), torch.zeros(8, 40)
    launch(x, y)
    assert torch.equal(y, 3 * x)


@pytest.mark.skipif(torch.cuda.is_available(), reason="pretends that a GPU is there")
def test_later_calls_pass_descriptors_of_their_tensors(launch, monkeypatch):
    launch(torch.zeros(8, 40), torch.zeros(8, 40))
    passed = []
    monkeypatch.setattr(torch._C, "_cuda_getDevice", lambda: 0, raising=False)
    launch._run, launch._stream, launch._device = lambda *arguments: passed.append(arguments), lambda _: 7, 0
    x, y = torch.randn(8, 40), torch.zeros(8, 40)
    launch(x, y)
    stream, of_x, of_y, *rest = passed[0]
    assert (stream, rest) == (7, [40, 3, 16])
    for descriptor, tensor in ((of_x, x), (of_y, y)):
        assert descriptor.base is tensor
        fresh = vars(TensorDescriptor.from_tensor(tensor, [8, 16]))
        assert {**vars(descriptor), "base": None} == {**fresh, "base": None}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_values_on_a_gpu(launch):
    if torch.cuda.get_device_capability()[0] < 9:
        pytest.skip("this GPU does not copy tiles by itself")
    for _ in range(3):
        x, y = torch.randn(8, 40, device="cuda"), torch.zeros(8, 40, device="cuda")
        launch(x, y)
        assert torch.equal(y, 3 * x)
