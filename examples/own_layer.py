"""Low-rank layers and streaming covariance with torch and `sieve_kernels` alone.

python examples/own_layer.py
"""

import torch

from sieve_kernels import gram_, lowrank_linear

torch.manual_seed(0)
x, W = torch.randn(4096, 256) * torch.logspace(0, -2, 256), torch.randn(512, 256)

# Σ y yᵀ of the layer's outputs, batch by batch: one 512×512 accumulator for a stream of any length.
C_y = torch.zeros(512, 512)
for batch in x.split(1024):
    gram_(C_y, batch @ W.T)

# The best rank-r map in mean squared output error projects on the leading eigenvectors of C_y.
U = torch.linalg.eigh(C_y).eigenvectors.flip(1)
A, B = U.T @ W, U
for rank in (16, 64, 128):
    y = lowrank_linear(x, A, B, rank=rank)  # reads slices of one pair of factors; copies nothing
    print(f"rank {rank:3}: relative output error {float((y - x @ W.T).norm() / (x @ W.T).norm()):.4f}")
