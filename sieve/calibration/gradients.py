"""The task's loss, and its gradients at the outputs of a matrix, which are summed into Gram matrices as they arise."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import PreTrainedModel

from sieve.calibration.once import OnlyOnce
from sieve.calibration.text import Batch
from sieve.evaluation.likelihood import logits_at
from sieve.evaluation.shortcuts import allowed
from sieve.models.loading import going_backward
from sieve.models.numerics import product
from sieve_kernels import gram_

# Rows up to this many tokens use plain attention; longer ones would need too much memory for scores of all layers.
_SHORT = 256


def answer_loss(model: PreTrainedModel, batch: Batch) -> torch.Tensor:
    """Cross-entropy in nats of the tokens from each row's `start` on, summed over the batch; 0 without such tokens."""
    cells, targets = [], []
    for row, (start, length) in enumerate(zip(batch.starts.tolist(), batch.mask.sum(1).tolist(), strict=True)):
        cells += [(row, at - 1) for at in range(start, length)]
        targets += batch.ids[row, start:length].tolist()
    places = torch.tensor(cells or [(0, 0)], device=model.device)
    logits = logits_at(model, batch.ids.to(model.device), places, few=allowed(model).logits)[: len(cells)]
    return nn.functional.cross_entropy(
        logits.float(), torch.tensor(targets, dtype=torch.int64, device=logits.device), reduction="sum"
    )


def backward(model: PreTrainedModel, batch: Batch) -> None:
    """One forward and backward pass of `answer_loss`, to run hooks. No parameter gets a gradient, frozen or not."""
    embedded: list[torch.Tensor] = []

    def remember(module: nn.Module, args: tuple, output: torch.Tensor) -> None:
        embedded.append(output if output.requires_grad else output.requires_grad_())

    handle = model.get_input_embeddings().register_forward_hook(remember)
    # Torch's fused attention is slow backward on CPU: for short rows it takes several times as long as the plain one.
    plain = model.device.type == "cpu" and batch.ids.shape[1] <= _SHORT
    try:
        with going_backward(model), sdpa_kernel(SDPBackend.MATH) if plain else nullcontext():
            torch.autograd.grad(answer_loss(model, batch), embedded)
    finally:
        handle.remove()


@contextmanager
def watching_gradients(
    layer: nn.Module, gram: torch.Tensor, basis: torch.Tensor | None, key: str, once: OnlyOnce
) -> Iterator[None]:
    """Add the gradients g at this layer's outputs to `gram` at every backward pass; with a basis [m, k], g basis.

    Padding needs no mask: tokens behind an answer's last token have no gradient.
    """

    def add(gradient: torch.Tensor) -> None:
        if not once.wants(key):
            return
        rows = gradient.reshape(-1, gradient.shape[-1])
        rows = rows if basis is None else product(rows, basis)
        with once.adding(key):
            gram_(gram, rows)

    def hook(layer: nn.Module, args: tuple, output: torch.Tensor) -> None:
        if output.requires_grad:
            output.register_hook(add)

    with layer.register_forward_hook(hook):
        yield


@contextmanager
def watching_importance(layer: nn.Module, importance: torch.Tensor, name: str, once: OnlyOnce) -> Iterator[None]:
    """Add Σ (x ∂L/∂x)² of this layer's input channels to `importance` [n] at every backward pass.

    To second order and with the Fisher matrix for the Hessian it is twice what the loss grows by without the channel.
    """

    def hook(layer: nn.Module, args: tuple) -> None:
        rows, key = args[0].detach(), f"importance of {name}"

        def add(gradient: torch.Tensor) -> None:
            if not once.wants(key):
                return
            products = gradient.float() * rows.float()
            found = products.reshape(-1, products.shape[-1]).square().sum(0)
            with once.adding(key):
                importance.add_(found)

        if args[0].requires_grad:
            args[0].register_hook(add)

    with layer.register_forward_pre_hook(hook):
        yield


def column_basis(W: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """W = Q R for m > n: Q [m, n] with orthonormal columns, R [n, n] upper triangular with a diagonal ≥ 0.

    The sign makes Q unique, so that code that measures gradients and code that uses them has the same Q.
    """
    Q, R = torch.linalg.qr(W)
    sign = torch.where(R.diagonal() < 0, -1.0, 1.0).to(W.dtype)
    return Q * sign, R * sign[:, None]
