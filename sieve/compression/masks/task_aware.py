"""Two calibration sets in one score: shared and exclusive channels, and how their scores are fused (DESIGN 2.10).

After Task-aware masks (arXiv 2510.22489), which scores on general text and on task data, and splits channels by the
difference of their activation norms. The threshold, the fusion operators and the normalisation are choices of our own.
"""

import torch

from sieve.compression.masks.config import MaskOptions


def difference(general: torch.Tensor, task: torch.Tensor) -> torch.Tensor:
    """d [n] in [0, 1]: |a - b| / (a + b) of the channels' activation norms, each divided by its mean over the layer.

    Args: general, task: H [n, n], mean over tokens of x xᵀ. Where both norms are zero, d is 0.
    """
    a, b = (_normalised(H.diagonal().clamp(min=0).sqrt()) for H in (general, task))
    return (a - b).abs() / (a + b).clamp(min=torch.finfo(a.dtype).tiny)


def fuse(
    general: torch.Tensor, task: torch.Tensor, scores: tuple[torch.Tensor, torch.Tensor], options: MaskOptions
) -> torch.Tensor:
    """One factor per channel [n] from those of the two sets (`scores`: general, task).

    Shared channels (d ≤ τ): by the operator. Exclusive ones: the factor of the side whose norm is larger. Factors are
    divided by their means first: this compares a channel's rank in its layer, not the overall scale of a set.
    """
    a, b = (_normalised(H.diagonal().clamp(min=0).sqrt()) for H in (general, task))
    of_general, of_task = map(_normalised, scores)
    shared = _shared(of_general, of_task, options)
    return torch.where(difference(general, task) <= options.tau, shared, torch.where(b > a, of_task, of_general))


def pooled(general: torch.Tensor, task: torch.Tensor, task_share: float) -> torch.Tensor:
    """H of both sets together, where the task has this share of the tokens."""
    return (1 - task_share) * general + task_share * task


def _shared(general: torch.Tensor, task: torch.Tensor, options: MaskOptions) -> torch.Tensor:
    share = options.task_share
    if options.fusion == "max":
        return torch.maximum(general, task)
    if options.fusion == "min":
        return torch.minimum(general, task)
    if options.fusion == "geometric":
        return general ** (1 - share) * task**share
    return (1 - share) * general + share * task


def _normalised(values: torch.Tensor) -> torch.Tensor:
    """The values divided by their mean; zeros stay."""
    return values / values.mean().clamp(min=torch.finfo(values.dtype).tiny)
