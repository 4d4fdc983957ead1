"""Projections that others have published, by name, each as nested factors: what ours are compared with.

All but `pca` have orthonormal B and A = Bᵀ W, and the directions of `pca` are uncorrelated on the data, so that the
output energy lost at a rank is the sum of those of the directions that go, as for `output_aligned`.
"""

import torch

from sieve.compression.low_rank.methods import ASVD, PCA, SVD, SVD_LLM
from sieve.compression.low_rank.problem import Problem, Solution
from sieve.registry import implements

ASVD_ALPHA = 0.5
"""The exponent that arXiv 2312.05821 recommends."""

_JITTER = 1e-8
"""Of the mean energy of a channel: the first that is tried where C has no Cholesky factor; ten times more each time."""


@implements(SVD)
def svd(problem: Problem) -> Solution:
    """The weights alone: M_r is the best rank-r approximation of W itself, as in LASER (arXiv 2312.13558)."""
    U, _, _ = torch.linalg.svd(problem.W, full_matrices=False)
    return _onto(U, problem)


@implements(PCA)
def pca(problem: Problem) -> Solution:
    """The inputs alone: x is projected on its r principal components, as in SliceGPT (arXiv 2401.15024).

    M_r = W P_r P_rᵀ with P the eigenvectors of C. Unlike SliceGPT it leaves the residual stream as it is, so that every
    matrix may have its own rank.
    """
    W, C = problem.W, _input_gram(problem, "pca")
    k = min(W.shape)
    values, vectors = torch.linalg.eigh((C + C.T) / 2)
    P = vectors.flip(1)
    B = W @ P
    energy = values.flip(0).clamp(min=0) * B.square().sum(0)
    energy[k - 1] += energy[k:].sum()  # what no rank keeps
    return P.T[:k].contiguous(), B[:, :k], energy[:k]


@implements(ASVD)
def asvd(problem: Problem) -> Solution:
    """Channels scaled by their size: ASVD (arXiv 2312.05821).

    With S = diag(mean |x|)^α and the SVD of W S = U Σ Vᵀ, M_r = U_r Σ_r V_rᵀ S⁻¹, which is U_r U_rᵀ W. The second form
    needs no inverse, so that a channel that is always zero (where the first is 0 / 0) is no special case.
    """
    if problem.magnitude is None:
        raise ValueError("asvd needs the mean size of every input channel")
    U, _, _ = torch.linalg.svd(problem.W * problem.magnitude**ASVD_ALPHA, full_matrices=False)
    return _onto(U, problem)


@implements(SVD_LLM)
def svd_llm(problem: Problem) -> Solution:
    """Truncation-aware whitening: SVD-LLM (arXiv 2403.07378).

    With the Cholesky factor of C = S Sᵀ and the SVD of W S = U Σ Vᵀ, M_r = U_r Σ_r V_rᵀ S⁻¹. Where C is regular this is
    the map of `output_aligned`, and so the optimum. Where it is singular, of fewer tokens than channels or with a
    channel that is always zero, there is no S. Then C + δ I has one, and δ is raised until it can be computed; S⁻¹
    still multiplies rounding errors by up to 1/√δ.
    """
    C = _input_gram(problem, "svd_llm")
    C = (C + C.T) / 2
    scale = C.diagonal().mean()
    jitter = 0.0
    S, failed = torch.linalg.cholesky_ex(C)
    while failed or not scale > 0:
        jitter = 10 * jitter or _JITTER * (float(scale) if scale > 0 else 1.0)
        S, failed = torch.linalg.cholesky_ex(C + jitter * torch.eye(len(C), dtype=C.dtype, device=C.device))
        scale = scale.clamp(min=jitter)  # without any data: the SVD of W
    U, singular, Vt = torch.linalg.svd(problem.W @ S, full_matrices=False)
    # X S = Σ Vᵀ, S lower triangular.
    A = torch.linalg.solve_triangular(S, singular[:, None] * Vt, upper=False, left=False)
    return A, U, _energy(U, problem)


def _onto(U: torch.Tensor, problem: Problem) -> Solution:
    """M_r = U_r U_rᵀ W for orthonormal columns U."""
    return U.T @ problem.W, U, _energy(U, problem)


def _energy(U: torch.Tensor, problem: Problem) -> torch.Tensor:
    """Σ_t (u_i · y_t)² of every column."""
    return ((problem.output_gram @ U) * U).sum(0).clamp(min=0)


def _input_gram(problem: Problem, name: str) -> torch.Tensor:
    if problem.side != "input":
        raise ValueError(f"{name} needs the Gram matrix of the inputs")
    return problem.gram
