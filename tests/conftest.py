"""Settings that must be in place before the packages under test are imported."""

import os

import torch

# Without a GPU, Triton kernels run in Triton's interpreter; they look at the variable when they are imported.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# Without it cuBLAS warns on every call of the tests that require deterministic results.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

# Choices measured on this machine must not influence the tests.
os.environ["SIEVE_KERNELS_TUNING"] = "off"
