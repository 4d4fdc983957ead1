"""Numbers: float64 where a device has it, and the weight or layer in which NaN or infinity begins."""

import torch
from torch import nn

from sieve_kernels.core.wide_products import wide_products

product = wide_products(torch.matmul)
"""`torch.matmul` of matrices of one dtype, in float32 where the processor has no products of that dtype."""


def double(tensor: torch.Tensor) -> torch.Tensor:
    """float64 where it can be had: Apple's GPUs have none, so there it is the CPU's."""
    if tensor.device.type == "mps":
        tensor = tensor.cpu()
    return tensor.detach().to(torch.float64)


@torch.inference_mode()
def first_nonfinite(model: nn.Module, ids: torch.Tensor) -> str:
    """The first weight, else the first layer, that is not finite when the model reads ids [B, T]; for messages."""
    for name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            return f"the weight {name} holds NaN or infinity; load an intact model"
    found: list[str] = []

    def watch(name: str):
        def hook(module: nn.Module, args: tuple, output) -> None:
            if isinstance(output, torch.Tensor) and not torch.isfinite(output).all():
                found.append(name)

        return hook

    leaves = [(name, module) for name, module in model.named_modules() if not any(module.children())]
    handles = [module.register_forward_hook(watch(name)) for name, module in leaves]
    try:
        model(input_ids=ids, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    layer = found[0] if found else "no layer that can be told"
    return f"it begins in {layer}; try --dtype bfloat16 or float32"
