"""A dense model that is any plan of its factors by setting integers: what a search scores candidates on."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from sieve.compression.low_rank.pair import FactorPair
from sieve.models.linears import replace
from sieve.models.matrix import DENSE
from sieve.nn.elastic_linear import SlicedLinear


class Slices:
    """A dense model whose matrices turn to any plan by setting integers. Made by `sliced_factors`."""

    def __init__(self, layers: dict[str, SlicedLinear]):
        self._layers = layers
        self._device = next(layer.dense.weight.device for layer in layers.values())
        # Ranks and who is dense [layers, P], by the number of candidates. Always the same memory: graphs read it.
        self._many: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def set(self, plan: Mapping[str, int | str]) -> None:
        for name, layer in self._layers.items():
            rank = plan.get(name, DENSE)
            layer.rank = None if rank == DENSE else rank
            layer.turn(None)

    def set_many(self, plans: Sequence[Mapping[str, int | str]]) -> None:
        """Be P candidates at a time: of the rows that the model reads, the p-th of P equal parts is for the p-th."""
        given = [[plan.get(name, DENSE) for plan in plans] for name in self._layers]
        numbers = torch.tensor([[1 if rank == DENSE else rank for rank in row] for row in given], dtype=torch.int64)
        dense = torch.tensor([[rank == DENSE for rank in row] for row in given])
        if len(plans) not in self._many:
            with torch.inference_mode(False):  # else they could be changed in this mode alone
                self._many[len(plans)] = tuple(torch.empty_like(each, device=self._device) for each in (numbers, dense))
        ranks, masks = self._many[len(plans)]
        ranks.copy_(numbers)
        masks.copy_(dense)
        for layer, row, mask, own in zip(self._layers.values(), ranks, masks, given, strict=True):
            layer.turn(row, [place for place, rank in enumerate(own) if rank == DENSE], mask)

    @contextmanager
    def alike(self) -> Iterator[None]:
        """Inside the block candidates of `set_many` launch the same kernels on the same memory, whoever they are.

        The results are the same bits, for more work: dense products are made for everybody.
        """
        for layer in self._layers.values():
            layer.alike = True
        try:
            yield
        finally:
            for layer in self._layers.values():
                layer.alike = False


@contextmanager
def sliced_factors(model: nn.Module, factors: Mapping[str, FactorPair]) -> Iterator[Slices]:
    """Within the block the model runs whatever plan was last set; afterwards it is the dense model again."""
    originals = {name: model.get_submodule(name) for name in factors}
    layers = {name: slices_of(layer, factors[name]) for name, layer in originals.items()}
    try:
        for name, layer in layers.items():
            replace(model, name, layer)
        yield Slices(layers)
    finally:
        for name, layer in originals.items():
            replace(model, name, layer)


def slices_of(layer: nn.Module, pair: FactorPair) -> SlicedLinear:
    """The dense layer, or any rank of the pair."""
    return SlicedLinear(layer, pair.A, pair.B, pair.mean, pair.output_mean)
