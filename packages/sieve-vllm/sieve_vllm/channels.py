"""The channels of an MLP that has lost some: how many of them each rank has, with zeros where there are not so many."""

from __future__ import annotations

import torch
from torch import nn

_MULTIPLE = 8  # so many 16-bit numbers are the 16 bytes at which fast kernels want rows to start


def channels_of_rank(channels: int, ranks: int) -> int:
    """How many of the channels each of so many ranks computes; zeros fill up what the last ranks lack."""
    return -(-channels // (ranks * _MULTIPLE)) * _MULTIPLE


def padded(tensor: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """A weight [m, n] or bias [m] with zeros up to so many rows and columns."""
    more = [0, columns - tensor.shape[1]] if tensor.ndim == 2 else []
    return nn.functional.pad(tensor, [*more, 0, rows - len(tensor)])


def as_stored(tensor: torch.Tensor) -> torch.Tensor:
    """A matrix as the checkpoint has it, where a model's loader has transposed it.

    vLLM's GPT-2 does so to every weight of its linear layers, since transformers stores these by inputs. The matrices
    of pruned layers are stored by outputs. A checkpoint's own tensors are contiguous.
    """
    turned = tensor.ndim == 2 and not tensor.is_contiguous() and tensor.t().is_contiguous()
    return tensor.t() if turned else tensor
