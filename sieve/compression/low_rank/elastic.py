"""A dense model that runs any plan of its factors: what a search scores candidates on. A plan is set as integers."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import nn
from transformers import PreTrainedModel

from sieve.compression.low_rank.pair import FactorPair
from sieve.compression.structured.channel_pair import ChannelPair, elastic_channels
from sieve.models.matrix import DENSE
from sieve.models.prunable_model import PrunableModel
from sieve.nn.elastic_linear import ElasticLinear


class ElasticModel:
    """A dense model that runs any plan of its factors. Made by `elastic_pairs`."""

    def __init__(self, layers: dict[str, ElasticLinear]):
        self._layers = layers
        self._device = next(layer.dense.weight.device for layer in layers.values())
        # By the number P of candidates: their ranks, and which are dense [layers, P]. Always the same memory, since
        # recorded CUDA graphs read it.
        self._many: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def set_plan(self, plan: Mapping[str, int | str]) -> None:
        for name, layer in self._layers.items():
            rank = plan.get(name, DENSE)
            layer.rank = None if rank == DENSE else rank
            layer.set_candidates(None)

    def set_batch(self, plans: Sequence[Mapping[str, int | str]]) -> None:
        """Run P plans at a time: of the rows that the model reads, the p-th of P equal parts is for the p-th plan."""
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
            layer.set_candidates(row, [place for place, rank in enumerate(own) if rank == DENSE], mask)

    @contextmanager
    def capture_safe(self) -> Iterator[None]:
        """Inside the block candidates of `set_batch` launch the same kernels on the same memory, whatever their
        ranks are.

        The results are the same bits, for more work: dense products are made for all candidates.
        """
        for layer in self._layers.values():
            layer.capture_safe = True
        try:
            yield
        finally:
            for layer in self._layers.values():
                layer.capture_safe = False


@contextmanager
def elastic_pairs(model: PreTrainedModel | PrunableModel, factors: Mapping[str, FactorPair]) -> Iterator[ElasticModel]:
    """Within the block the model runs whatever plan was last set; afterwards it is the dense model again."""
    model = PrunableModel.of(model)
    layers = {name: elastic_linear(model.layer(name), pair) for name, pair in factors.items()}
    with model.replaced(layers):
        yield ElasticModel(layers)


def elastic_linear(layer: nn.Module, pair: FactorPair) -> ElasticLinear:
    """The dense layer, or any rank of the pair."""
    if isinstance(pair, ChannelPair):
        return elastic_channels(layer, pair)
    return ElasticLinear(layer, pair.A, pair.B, pair.mean, pair.output_mean)
