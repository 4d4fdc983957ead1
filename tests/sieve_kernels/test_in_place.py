"""Outputs of operators may be changed in place where gradients are wanted, as those of torch's own may."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sieve_kernels import (
    act_mul,
    linear,
    lowrank_linear,
    lowrank_linear_group,
    lowrank_linear_pivoted,
    lowrank_linear_population,
    lowrank_linear_quantized,
    lowrank_mlp,
    lowrank_swiglu,
    quantize_rows,
    rms_norm,
    rotary,
)

N, M, R = 32, 24, 8
SHAPES = {"one row": (1, 1, N), "few rows": (2, 3, N), "rows": (2, 80, N), "blocks": (2, 600, N)}


def weights(*shapes: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    return [torch.randn(shape, device=device).mul(shape[-1] ** -0.5).to(dtype) for shape in shapes]


def operators(dtype: torch.dtype, device: torch.device) -> dict[str, Callable[[Tensor], Tensor | tuple[Tensor, ...]]]:
    """Functions of x [..., N]."""
    W, A, B, C, D, bias, scale = weights(
        (M, N), (R, N), (M, R), (M - R, R), (N, M), (M,), (N,), dtype=dtype, device=device
    )
    order, ranks = torch.randperm(M, device=device), torch.tensor([3, R], device=device)
    turns = torch.randn(1, 16, N, dtype=dtype, device=device)
    return {
        "linear": lambda x: linear(x, W),
        "linear with bias": lambda x: linear(x, W, bias),
        "pair": lambda x: lowrank_linear(x, A, B),
        "pair with bias": lambda x: lowrank_linear(x, A, B, bias),
        "pivoted": lambda x: lowrank_linear_pivoted(x, A, C, order, bias),
        "group": lambda x: lowrank_linear_group(x, [A, A], [B, B], [bias, bias]),
        "population": lambda x: lowrank_linear_population(x.reshape(-1, N).expand(2, -1, N), A, B, ranks),
        "quantized": lambda x: lowrank_linear_quantized(x, *quantize_rows(A, 8), *quantize_rows(B, 8), bias),
        "gated": lambda x: lowrank_swiglu(x, A, B, A, B),
        "mlp": lambda x: lowrank_mlp(x, (A, B), (A, B), (D,)),
        "act mul": lambda x: act_mul(*x.chunk(2, -1)),
        "norm": lambda x: rms_norm(x, scale),
        "rotary": lambda x: rotary(x.reshape(1, -1, 1, N).expand(1, -1, 16, N), x[:1, :1, None].expand(1, 1, 16, N),
                                   turns, turns),
    }  # fmt: skip


@pytest.mark.parametrize("implementation", ["torch", "torch_gpu", "cpp"], indirect=True)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("name", operators(torch.float32, torch.device("cpu")))
def test_outputs_can_be_changed_in_place(implementation, name, shape, dtype, device):
    if implementation == "torch_gpu" and shape == SHAPES["blocks"]:
        pytest.skip("blocks of tokens are the CPU's alone")
    operator, x = operators(dtype, device)[name], torch.randn(shape, device=device).to(dtype)

    def gradient(in_place: bool) -> Tensor:
        leaf = x.clone().requires_grad_()
        outputs = operator(leaf)
        total = 0
        for output in [outputs] if isinstance(outputs, Tensor) else outputs:
            changed = output.mul_(3).add_(1) if in_place else output * 3 + 1
            total = total + changed.float().square().sum()
        return torch.autograd.grad(total, leaf)[0]

    assert torch.equal(gradient(in_place=True), gradient(in_place=False))
