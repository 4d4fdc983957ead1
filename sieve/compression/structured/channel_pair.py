"""Which hidden channels an MLP keeps at every width, and what its last matrix becomes without the others (DESIGN 2.12).

Channels h enter the last matrix, y = W h. Let the first k of an order stay, S. Of all matrices that read these alone,
Σ_t |W h_t - M h_t,S|² + λ |W - M|² is least at M = W C_{:,S} C_SS⁻¹ with C = Σ h hᵀ + λ I. With the Cholesky factor
C = L Lᵀ in that order, M h_S = (W L)_{:,:k} (L⁻¹ h)_{:k}, and the first k entries of L⁻¹ h depend on h_S alone. So
B = W L and A = L⁻¹ are a nested pair whose every slice is the best narrow matrix: one factorisation serves all widths.
"""

from dataclasses import dataclass, field

import torch
from torch import nn

from sieve.compression.low_rank.pair import FactorPair
from sieve.compression.low_rank.problem import Problem
from sieve.models.linears import weight_of
from sieve.models.mlp_width import Writers
from sieve.nn.elastic_linear import ElasticChannels, centred_bias
from sieve.nn.narrow import NarrowLinear

RIDGE = 0.1
"""λ as a share of the mean energy of a channel: a small one makes channels of few tokens speak for others."""


@dataclass(frozen=True)
class ChannelPair(FactorPair):
    """The widths of one MLP, as a nested pair of its last matrix: width k is A[:k] and B[:, :k].

    A: [K, n], B: [m, K] float32; A[:k] reads no channel but the first k of `order`.
    energy: [K] float64, what each channel adds to the energy of the outputs when those before it are there.
    order: [K] int64, channels by importance, those that stay longest first.
    writers: the matrices that write the channels.
    """

    order: torch.Tensor = field(kw_only=True)
    writers: Writers = field(kw_only=True)

    def channels(self, width: int) -> torch.Tensor:
        """Those that stay [k], ascending."""
        return self.order[:width].sort().values

    def weight(self, width: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The channels that stay [k], and the last matrix for them [m, k] float32."""
        channels = self.channels(width)
        A, B = self.slice(width)
        return channels, B @ A[:, channels]


def channel_pair(
    problem: Problem,
    importance: torch.Tensor,
    writers: Writers,
    width: int,
    mean: torch.Tensor | None = None,
    output_mean: torch.Tensor | None = None,
) -> ChannelPair:
    """The pair of the widths of one MLP.

    Args:
        problem: of its last matrix, with the Gram matrix of the inputs.
        importance: [n], of each channel (`Statistics.importance`).
        width: the largest one that is asked for.
        mean, output_mean: as `FactorPair` has them.
    """
    W, C = problem.W, problem.gram
    n = len(C)
    order = importance.argsort(descending=True, stable=True)
    size = C.diagonal().mean()
    ridge = torch.eye(n, dtype=C.dtype, device=C.device) * (RIDGE * size if size > 0 else 1)
    ordered = ((C + C.T) / 2 + ridge)[order][:, order]
    L = torch.linalg.cholesky(ordered)
    A = torch.empty_like(C)
    A[:, order] = torch.linalg.solve_triangular(L, torch.eye(n, dtype=C.dtype, device=C.device), upper=False)
    B = W[:, order] @ L
    energy = B.square().sum(0).cpu()
    A, B, order = A[:width].float(), B[:, :width].float(), order[:width].clone()
    return ChannelPair(A, B, energy, None, mean, output_mean, order=order, writers=writers)


def refitted_channels(
    pair: ChannelPair,
    W: torch.Tensor,
    gram: torch.Tensor,
    cross: torch.Tensor,
    width: int,
    mean: torch.Tensor | None = None,
    output_mean: torch.Tensor | None = None,
) -> ChannelPair:
    """The pair of one width whose matrix is fitted to channels h' as the pruned model has them, to give W h.

    Args:
        W: [m, n], gram: Σ h' h'ᵀ, cross: Σ h h'ᵀ [n, n], float64. mean, output_mean: of h' and W h, where they are
            about their means.
    """
    channels = pair.channels(width)
    ridge = RIDGE * gram.diagonal().mean()
    chosen = gram[channels][:, channels]
    chosen = (chosen + chosen.T) / 2 + ridge * torch.eye(width, dtype=gram.dtype, device=gram.device)
    target = (W @ cross + ridge * W)[:, channels]
    B = torch.cholesky_solve(target.T, torch.linalg.cholesky(chosen)).T
    A = torch.zeros(width, len(gram), device=gram.device)
    A[torch.arange(width, device=gram.device), channels] = 1
    return ChannelPair(A, B.float(), pair.energy, None, mean, output_mean, order=channels, writers=pair.writers)


def elastic_channels(layer: nn.Module, pair: ChannelPair) -> ElasticChannels:
    """The dense layer, or any width of the pair."""
    return ElasticChannels(layer, pair.A, pair.B, pair.mean, pair.output_mean, pair.weight)


@torch.no_grad()
def narrow_reader(layer: nn.Module, pair: ChannelPair, width: int) -> NarrowLinear:
    """The last matrix for the channels that stay; it takes the place of the dense `layer`."""
    _, weight = pair.weight(width)
    shift = pair.shift(width)
    bias = layer.bias if shift is None else centred_bias(layer.bias, shift, layer.weight.dtype)
    return _narrow(layer, weight, bias)


@torch.no_grad()
def narrow_writer(layer: nn.Module, channels: torch.Tensor, width: int, parts: int) -> NarrowLinear:
    """The rows of `layer` that write these of `width` channels, in each of its equal parts."""
    rows = torch.cat([channels + part * width for part in range(parts)])
    return _narrow(layer, weight_of(layer)[rows], None if layer.bias is None else layer.bias[rows])


def _narrow(layer: nn.Module, weight: torch.Tensor, bias: torch.Tensor | None) -> NarrowLinear:
    old = layer.weight
    made = NarrowLinear(*weight.shape[::-1], bias is not None, device=old.device, dtype=old.dtype)
    made.weight.copy_(weight)
    if bias is not None:
        made.bias.copy_(bias)
    return made.train(layer.training).requires_grad_(old.requires_grad)
