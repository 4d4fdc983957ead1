"""Which matrices a model has, and how one is read and replaced."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from sieve.errors import InputError, NumericsError
from sieve.layers import PAIRS, LowRankLinear, PivotedLinear
from sieve.plan import Matrix


def prunable(model: nn.Module, pivoted: bool = False) -> dict[str, Matrix]:
    """The linear layers inside the model's decoder blocks, in the order of `named_modules`.

    `pivoted`: their pairs are to be stored pivoted, which decides what a rank costs.

    Embeddings and the output head lie outside the blocks and are left alone; fused projections
    (qkv_proj, gate_up_proj) count as the one matrix they are. Layers that are low-rank already are passed over.

    Raises: InputError when there is nothing to prune.
    """
    prefix, blocks = decoder_blocks(model)
    matrices = {}
    for index, block in enumerate(blocks):
        pairs = tuple(f"{name}." for name, layer in block.named_modules() if isinstance(layer, PAIRS))
        for name, layer in block.named_modules():
            if type(layer) in (nn.Linear, Conv1D) and not (pairs and name.startswith(pairs)):
                m, n = weight_of(layer).shape
                full = f"{prefix}.{index}.{name}"
                matrices[full] = Matrix(full, m, n, index, pivoted)
    if not matrices:
        raise InputError(
            f"{type(model).__name__} has nothing to prune: no nn.Linear or Conv1D inside its decoder blocks "
            "(is it pruned or quantised already? start from the original model)"
        )
    return matrices


def decoder_blocks(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """The ModuleList of decoder blocks and its dotted name: the outermost one of the configured length."""
    config = getattr(model, "config", None)
    count = getattr(config.get_text_config(decoder=True), "num_hidden_layers", None) if config is not None else None
    lists = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    for name, module in lists:
        if len(module) == count:
            return name, module
    raise InputError(
        f"{type(model).__name__} has nothing to prune: found no list of {count} decoder blocks; "
        "Sieve prunes transformers' AutoModelForCausalLM models"
    )


def weight_of(layer: nn.Module) -> torch.Tensor:
    """The layer's weight as W [m, n] (a view; Conv1D stores its transpose)."""
    return layer.weight.T if isinstance(layer, Conv1D) else layer.weight


def check_finite(model: nn.Module) -> None:
    """NumericsError naming the first parameter that holds NaN or infinity."""
    for name, parameter in model.named_parameters():
        # A sum is one pass without a temporary; overflow of a finite sum is ruled out by the second look.
        if not torch.isfinite(parameter.detach().sum()) and not torch.isfinite(parameter.detach()).all():
            raise NumericsError(f"{name} holds NaN or infinity: the model file is damaged or badly converted")


@contextmanager
def forwarding(module: nn.Module, forward: Callable) -> Iterator[None]:
    """Inside the block `forward` is in the place of the module's own."""
    own = module.__dict__.get("forward")  # accelerate, for one, sets such
    module.forward = forward
    try:
        yield
    finally:
        if own is None:
            del module.forward  # the class's shows again
        else:
            module.forward = own


def replace(model: nn.Module, name: str, layer: nn.Module) -> None:
    """Put `layer` where the dotted `name` points."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, layer)


def low_rank(
    layer: nn.Module,
    rank: int,
    device: torch.device | str | None = None,
    pivoted: bool = False,
    biased: bool = False,
) -> LowRankLinear | PivotedLinear:
    """An uninitialised pair of the shape, dtype and (unless given) device of `layer`; it has a bias if that has one,
    or if `biased`."""
    weight = weight_of(layer)
    m, n = weight.shape
    kind = PivotedLinear if pivoted else LowRankLinear
    return kind(n, m, rank, biased or layer.bias is not None, device=device or weight.device, dtype=weight.dtype)
