"""AdamW on float32 copies of a model's parameters: a step on a weight near 1 is too small for bfloat16."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import nn

from sieve.healing.lora import adapter_parameters
from sieve.models.halving import indivisible
from sieve.nn.formats.masked import masked_layers

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_BETAS = (0.9, 0.98)
# The learning rate rises during one quarter of the steps.
_WARM_UP = 4
# Fraction of the learning rate that is left at the end of the cosine.
_LAST = 0.05
_FUSED = ("cpu", "cuda")
_MOMENTS = ("step", "exp_avg", "exp_avg_sq")
# Largest norm of a step's gradient.
_CLIP = 1.0


def trained_parameters(model: PreTrainedModel) -> dict[str, nn.Parameter]:
    """All parameters except the embedding and the output head; for a model with adapters only theirs."""
    adapters = adapter_parameters(model)
    if adapters:
        return adapters
    tables = [model.get_input_embeddings(), model.get_output_embeddings()]
    left = {id(parameter) for table in tables if table is not None for parameter in table.parameters()}
    return {name: parameter for name, parameter in model.named_parameters() if id(parameter) not in left}


class Masters:
    """The optimiser: gradients are summed in float32, zeros of masked matrices stay zeros.

    A context manager: on entering, the model gets the weights of these masters; several can take turns on one model.

    Args:
        model: its parameters are changed in place at each step.
        rate: the largest learning rate, after the warm-up. steps: after these it has fallen to a twentieth.
    """

    def __init__(self, model: PreTrainedModel, rate: float, steps: int):
        self._parameters = trained_parameters(model)
        self._wide = {name: one.detach().to(_wide(one.dtype), copy=True) for name, one in self._parameters.items()}
        self._zeros = _zeros(model, self._parameters)
        # Fused: one pass over weight, gradient and both moments, instead of one pass for each operation.
        fused = model.device.type in _FUSED
        self._adam = torch.optim.AdamW(self._wide.values(), lr=rate, betas=_BETAS, weight_decay=0.0, fused=fused)
        warm = max(1, steps // _WARM_UP)
        self._schedule = torch.optim.lr_scheduler.LambdaLR(
            self._adam,
            lambda step: (
                min(1.0, (step + 1) / warm)
                * (_LAST + (1 - _LAST) * 0.5 * (1 + math.cos(math.pi * min(step / steps, 1))))
            ),
        )
        self._model = model

    def __enter__(self) -> Masters:
        self._was_trained = {name: one.requires_grad for name, one in self._model.named_parameters()}
        self._write()
        for parameter in self._model.parameters():
            parameter.requires_grad_(False)
        for parameter in self._parameters.values():
            parameter.requires_grad_(True)
        return self

    def __exit__(self, *exception) -> None:
        for name, parameter in self._model.named_parameters():
            parameter.requires_grad_(self._was_trained[name])
            parameter.grad = None

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradients of a part of the step's loss; where that breaks off, none are added."""
        try:
            loss.backward()
        except BaseException:
            for parameter in self._parameters.values():
                parameter.grad = None
            raise
        with indivisible("the gradients of healing"):
            for name, parameter in self._parameters.items():
                if parameter.grad is None:
                    continue
                wide, gradient = self._wide[name], parameter.grad
                wide.grad = gradient.to(wide.dtype, copy=True) if wide.grad is None else wide.grad.add_(gradient)
                parameter.grad = None

    @torch.no_grad()
    def step(self) -> bool:
        """Change the model by the gradients so far; returns False, without a change, if they are not finite."""
        norm = nn.utils.clip_grad_norm_(self._wide.values(), _CLIP)
        finite = bool(torch.isfinite(norm))
        if finite:
            self._adam.step()
            for name, zeros in self._zeros.items():
                self._wide[name].masked_fill_(zeros, 0)
            self._write()
        self._adam.zero_grad()
        self._schedule.step()
        return finite

    def state(self) -> dict[str, torch.Tensor]:
        """Weights and moments after the steps so far, for `restore`; these are not copies."""
        state = {f"wide {name}": one.detach() for name, one in self._wide.items()}
        for name, one in self._wide.items():
            for key, value in self._adam.state[one].items():
                state[f"{key} {name}"] = value
        return state

    @torch.no_grad()
    def restore(self, state: Mapping[str, torch.Tensor], steps: int) -> None:
        """Continue from another optimiser's `state` after `steps` steps."""
        for name, one in self._wide.items():
            one.copy_(state[f"wide {name}"])
            moments = {key: state[f"{key} {name}"] for key in _MOMENTS if f"{key} {name}" in state}
            self._adam.state[one].update({key: value.to(one.device, copy=True) for key, value in moments.items()})
        with warnings.catch_warnings():
            # torch warns because the schedule steps before the optimiser does.
            warnings.simplefilter("ignore")
            for _ in range(steps):
                self._schedule.step()

    @torch.no_grad()
    def _write(self) -> None:
        for name, wide in self._wide.items():
            self._parameters[name].copy_(wide)


def _zeros(model: PreTrainedModel, parameters: dict[str, nn.Parameter]) -> dict[str, torch.Tensor]:
    """Name of each masked weight → a mask of its zeros."""
    return {f"{name}.weight": parameters[f"{name}.weight"].detach() == 0 for name in masked_layers(model)}


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)
