"""Which layers read one input."""

from typing import TYPE_CHECKING

from torch import nn
from transformers import PreTrainedModel

from sieve.errors import InputError
from sieve.models.decoder import run_decoder
from sieve.models.loading import evaluating
from sieve.models.matrix import Matrix

if TYPE_CHECKING:
    from sieve.calibration.text import Batch


def group_layers_by_input(model: PreTrainedModel, matrices: dict[str, Matrix], batch: "Batch") -> list[list[str]]:
    """Matrices grouped by the tensor they read (q, k, v; gate, up), as seen on the first tokens of a batch.

    Watching is surer than knowing names: it holds for every architecture.
    """
    readers: dict[int, list[str]] = {}
    alive = []  # an id is only unique while its tensor lives

    def watch(name: str):
        def hook(layer: nn.Module, args: tuple) -> None:
            alive.append(args[0])
            readers.setdefault(id(args[0]), []).append(name)

        return hook

    handles = [model.get_submodule(name).register_forward_pre_hook(watch(name)) for name in matrices]
    try:
        with evaluating(model):
            run_decoder(model, batch.ids[:1, :8], batch.mask[:1, :8])
    finally:
        for handle in handles:
            handle.remove()
    seen = {name for group in readers.values() for name in group}
    missing = [name for name in matrices if name not in seen]
    if missing:
        raise InputError(
            f"{missing[0]} is not called in a forward pass over the calibration data, so it cannot be calibrated"
        )
    return list(readers.values())
