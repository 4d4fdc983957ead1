"""Which layers read one input."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack

import torch
from torch import nn
from transformers import PreTrainedModel

from sieve.errors import InputError
from sieve.models.decoder import run_decoder
from sieve.models.loading import evaluating

_TOKENS = 8  # of the pass that shows who reads what


def group_layers_by_input(model: PreTrainedModel, names: Sequence[str]) -> list[list[str]]:
    """Names of linear layers grouped by the tensor they read (q, k, v; gate, up), as seen in a short forward pass.

    This is surer than the layers' names: it holds for every architecture.
    """
    readers: dict[int, list[str]] = {}
    alive = []  # an id is only unique while its tensor lives

    def watch(name: str) -> Callable:
        def hook(layer: nn.Module, args: tuple) -> None:
            alive.append(args[0])
            readers.setdefault(id(args[0]), []).append(name)

        return hook

    ids = torch.zeros(1, _TOKENS, dtype=torch.int64)
    with ExitStack() as hooks, evaluating(model):
        for name in names:
            hooks.callback(model.get_submodule(name).register_forward_pre_hook(watch(name)).remove)
        run_decoder(model, ids, torch.ones_like(ids))
    seen = {name for group in readers.values() for name in group}
    if missing := [name for name in names if name not in seen]:
        raise InputError(f"{missing[0]} is not called in a forward pass over text, so it cannot be calibrated")
    return list(readers.values())
