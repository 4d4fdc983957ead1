"""LLM-Sieve's own recipe: the projections learned by Adam (arXiv 2505.18350), as far as it is known.

The paper's code is not public. This follows its formulas and the constants of public re-implementations, unverified:
before a non-linearity y ≈ (W A)(A⁺ x), after one y ≈ A⁺ ((A W) x), with A drawn from N(0, 0.01²) and trained by Adam on
the mean squared output error, lr 1e-3, two epochs over 200,000 calibration tokens in batches of 5,000. A⁺ is the
pseudo-inverse; re-implementations put Aᵀ in its place, which makes the map depend on the size of A.

Its objective is the one that `output_aligned` solves in closed form, so this can at best tie it. It is here to compare.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel

from sieve.calibration.statistics import Statistics
from sieve.calibration.text import batches
from sieve.compression.low_rank.methods import LLM_SIEVE_SGD
from sieve.compression.low_rank.pair import FactorPair
from sieve.errors import InputError, NumericsError
from sieve.models.decoder import run_decoder
from sieve.models.linears import weight_of
from sieve.models.loading import evaluating
from sieve.nn.families import LAYERS_AFTER_NONLINEARITY
from sieve.registry import implements
from sieve.utils import progress

LEARNING_RATE = 1e-3
EPOCHS = 2
BATCH_TOKENS = 5000
_SPREAD = 0.01


@implements(LLM_SIEVE_SGD)
def train(
    model: PreTrainedModel,
    statistics: Statistics,
    ranks: Mapping[str, int],
    epochs: int = EPOCHS,
    learning_rate: float = LEARNING_RATE,
    batch_tokens: int = BATCH_TOKENS,
    seed: int = 0,
) -> dict[str, FactorPair]:
    """Pairs of exactly these ranks. Not nested, and without energies: it learns neither.

    The dense model runs over `statistics.samples` once an epoch, and every matrix takes one step on each batch as its
    inputs come by, so that no activations are kept.

    Raises: InputError where the statistics hold no texts, NumericsError naming the matrix that diverges.
    """
    if not statistics.samples:
        raise InputError("the statistics hold no calibration examples: calibrate with method='llm_sieve_sgd'")
    # Random beginnings, the same for the same seed.
    generator = torch.Generator().manual_seed(seed)
    learned = {
        name: _Learned(name, model.get_submodule(name), rank, learning_rate, generator) for name, rank in ranks.items()
    }
    data = batches(statistics.samples, batch_tokens)
    mask: torch.Tensor | None = None

    def watch(one: "_Learned"):
        def hook(layer: nn.Module, args: tuple, output: torch.Tensor) -> None:
            bias = 0 if layer.bias is None else layer.bias.detach()
            x, y = (tensor.detach().reshape(-1, tensor.shape[-1])[mask] for tensor in (args[0], output - bias))
            one.step(x, y)

        return hook

    # Each pass of the dense model over a batch is one step of every matrix.
    handles = [model.get_submodule(name).register_forward_hook(watch(one)) for name, one in learned.items()]
    try:
        with evaluating(model), torch.no_grad(), progress.bar("training", epochs * len(data), "batches") as advance:
            for _ in range(epochs):
                for index in torch.randperm(len(data), generator=generator).tolist():
                    batch = data[index]
                    attended = batch.mask.to(model.device)
                    mask = attended.flatten().bool()
                    run_decoder(model, batch.ids, attended)
                    advance(1)
    finally:
        for handle in handles:
            handle.remove()
    return {name: one.pair() for name, one in learned.items()}


class _Learned:
    """One matrix's A in training: [n, r] of inputs, or [r, m] of outputs."""

    def __init__(self, name: str, layer: nn.Module, rank: int, learning_rate: float, generator: torch.Generator):
        self._name, self._weight = name, weight_of(layer).detach()
        m, n = self._weight.shape
        self._after = name.rsplit(".", 1)[-1] in LAYERS_AFTER_NONLINEARITY
        start = _SPREAD * torch.randn((rank, m) if self._after else (n, rank), generator=generator)
        self._A = start.to(self._weight.device).requires_grad_()
        self._optimizer = torch.optim.Adam([self._A], lr=learning_rate)

    def factors(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(A [r, n], B [m, r]) of the pair, float32."""
        A, W = self._A, self._weight.float()
        gram = A @ A.T if self._after else A.T @ A
        # A tiny ridge, for columns that training has made equal.
        gram = gram + 1e-6 * gram.detach().diagonal().mean() * torch.eye(len(gram), device=gram.device)
        root, failed = torch.linalg.cholesky_ex(gram)
        if failed:
            raise NumericsError(f"training {self._name} diverged: its A has lost its rank")
        if self._after:
            return A @ W, torch.cholesky_solve(A, root).T
        return torch.cholesky_solve(A.T, root), W @ A

    def step(self, x: torch.Tensor, y: torch.Tensor) -> None:
        """One step of Adam on mean (y - ŷ)²; x [T, n], y [T, m].

        As mixed precision does it: A, its optimiser and the loss are float32, the products in the dtype of x.
        """
        with torch.enable_grad():
            A, B = self.factors()
            predicted = (x @ A.T.to(x.dtype)) @ B.T.to(x.dtype)
            loss = F.mse_loss(predicted.float(), y.float())
            (self._A.grad,) = torch.autograd.grad(loss, [self._A])
        self._optimizer.step()

    @torch.no_grad()
    def pair(self) -> FactorPair:
        A, B = (factor.to(self._weight.dtype) for factor in self.factors())
        if not (A.isfinite().all() and B.isfinite().all()):
            raise NumericsError(f"training {self._name} diverged: its factors are not finite")
        return FactorPair(A, B, torch.zeros(min(self._weight.shape), dtype=torch.float64))
