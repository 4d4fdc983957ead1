"""The function of a toy projection: `output_aligned` at levelling 0, and `svd` in the limit of infinite levelling."""

import torch

from sieve.compression.low_rank.output_aligned import output_aligned
from sieve.compression.low_rank.problem import Problem, Solution
from sieve.registry import implements
from tests.sieve.compression.low_rank.toy_projection.methods import LEVELLED


@implements(LEVELLED)
def levelled(problem: Problem, levelling: float) -> Solution:
    C = problem.gram
    noisy = C + levelling * C.diagonal().mean() * torch.eye(len(C), dtype=C.dtype)
    return output_aligned(problem.W, noisy, problem.side, problem.tokens)
