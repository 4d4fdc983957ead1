"""The layer that a search puts in the place of a matrix: any rank of its nested pair, or several at a time."""

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import nn

from sieve_kernels import linear, lowrank_linear, lowrank_linear_population


class ElasticLinear(nn.Module):
    """A matrix whose rank is one integer.

    `rank=None` runs the dense layer itself; otherwise the leading `rank` rows of A [R, n] and columns of
    B [m, R] are used as views. Changing a candidate is setting `rank`: nothing is copied. With means [n] and [m] the
    pair serves what the input is beyond its mean: y = (x - mean) Aᵀ Bᵀ + output_mean + bias.

    `set_candidates` makes it several candidates at a time: the rows of x are then as many equal parts, one for each.
    """

    def __init__(
        self,
        dense: nn.Module,
        A: torch.Tensor,
        B: torch.Tensor,
        mean: torch.Tensor | None = None,
        output_mean: torch.Tensor | None = None,
    ):
        super().__init__()
        self.dense, self.rank = dense, None
        self._ranks: torch.Tensor | None = None  # of several candidates [P]
        self._dense: list[int] = []  # indices of the candidates that are dense
        self._mask: torch.Tensor | None = None  # the same as bool [P], on the factors' device
        # Launch the same kernels whichever candidates are dense, by what the two tensors hold when they run.
        self.capture_safe = False
        self._A, self._B = A, B  # plain attributes: they are the factors' tensors, not this model's state
        self._mean = None if mean is None else mean.to(A.dtype)
        self._bias = dense.bias if output_mean is None else centred_bias(dense.bias, output_mean, A.dtype)

    def set_candidates(
        self, ranks: torch.Tensor | None, dense: list[int] = (), mask: torch.Tensor | None = None
    ) -> None:
        """Run candidates of these ranks [P]; None: one candidate, of `rank`.

        dense: indices of the candidates that are dense. mask: the same as bool [P], on the device of `ranks`.
        """
        self._ranks, self._dense, self._mask = ranks, dense, mask

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self._ranks is not None:
            return self._population(x)
        if self.rank is None:
            return self.dense(x)
        return lowrank_linear(self._centred(x), self._A, self._B, self._bias, rank=self.rank)

    def _centred(self, x: torch.Tensor) -> torch.Tensor:
        return x if self._mean is None else x - self._mean

    def _population(self, x: torch.Tensor) -> torch.Tensor:
        """x [P·rows, …, n] → y [P·rows, …, m].

        Products have the same shapes whichever candidates are dense, so that a candidate's sums do not depend on batch
        composition. The pairs' kernel runs for all candidates: a dense one's rank is 1, which costs next to nothing.
        Dense products are made one by one; if `capture_safe`, for all candidates, and those of the others are thrown
        away.
        """
        rows = x.reshape(len(self._ranks), -1, x.shape[-1])
        if self.capture_safe or len(self._dense) < len(rows):
            y = self._pairs(rows)
            if self._bias is not None:
                y += self._bias
        else:
            y = x.new_empty(*rows.shape[:2], self._B.shape[0])
        if self.capture_safe:
            y = torch.where(self._mask[:, None, None], torch.stack([self.dense(own) for own in rows]).to(y.dtype), y)
        else:
            for candidate in self._dense:
                y[candidate] = self.dense(rows[candidate])
        return y.reshape(*x.shape[:-1], -1)

    def _pairs(self, rows: torch.Tensor) -> torch.Tensor:
        """rows [P, T, n] → the outputs of the candidates' pairs [P, T, m], without a bias."""
        return lowrank_linear_population(self._centred(rows), self._A, self._B, self._ranks)


class ElasticChannels(ElasticLinear):
    """The last matrix of an MLP, of which any number of channels can be left: `rank` is that number.

    A [n, n] and B [m, n] are float32 and read ever more channels of x [..., n] (`ChannelPair`). weight: width k → the
    channels that stay [k] and the matrix for them [m, k], which is what a stored model has; the last used are kept.
    """

    _KEPT = 16

    def __init__(
        self,
        dense: nn.Module,
        A: torch.Tensor,
        B: torch.Tensor,
        mean: torch.Tensor | None,
        output_mean: torch.Tensor | None,
        weight: Callable[[int], tuple[torch.Tensor, torch.Tensor]],
    ):
        super().__init__(dense, A, B, mean, output_mean)
        self._dtype = dense.weight.dtype
        self._weight = lru_cache(self._KEPT)(lambda width: self._made(*weight(width)))

    def _made(self, channels: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Channels, matrix and bias of one width."""
        bias = self._bias
        if self._mean is not None:
            bias = centred_bias(bias, -weight @ self._mean[channels], self._dtype)
        return channels, weight.to(self._dtype), None if bias is None else bias.to(self._dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self._ranks is not None or self.rank is None:
            return super().forward(x)
        channels, weight, bias = self._weight(self.rank)
        return linear(x.index_select(-1, channels), weight, bias)

    def _pairs(self, rows: torch.Tensor) -> torch.Tensor:
        return super()._pairs(rows.float()).to(self._dtype)


def centred_bias(bias: torch.Tensor | None, shift: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """bias + shift [m], added in float32."""
    return (shift.float() if bias is None else bias.detach().float() + shift.float()).to(dtype)
