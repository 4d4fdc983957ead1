"""Weights and inputs whose channels differ in size, as activations do."""

import torch


def layer_data(m: int, n: int, tokens: int = 300, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """W [m, n] and inputs X [tokens, n], float64; channels are correlated and of different size."""
    generator = torch.Generator().manual_seed(seed)
    W = torch.randn(m, n, generator=generator, dtype=torch.float64)
    X = torch.randn(tokens, n, generator=generator, dtype=torch.float64)
    X = X @ (torch.eye(n, dtype=torch.float64) + 0.3 * torch.randn(n, n, generator=generator, dtype=torch.float64))
    return W, X * torch.logspace(0, -1.5, n, dtype=torch.float64)[torch.randperm(n, generator=generator)]


def per_token(X: torch.Tensor) -> torch.Tensor:
    """H [n, n]."""
    return X.T @ X / len(X)
