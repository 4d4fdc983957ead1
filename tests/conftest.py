"""Settings that must be in place before the packages under test are imported."""

import os

import torch

# Without a GPU, Triton kernels run in Triton's interpreter; they look at the variable when they are imported.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# Without it cuBLAS warns on every call where tests ask for the same bits each time.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

# What was measured on this machine must not decide what is tested.
os.environ["SIEVE_KERNELS_TUNING"] = "off"
