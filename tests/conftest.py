"""Settings that must be in place before the packages under test are imported."""

import os

import torch

# Without a GPU, Triton kernels run in Triton's interpreter; they look at the variable when they are imported.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# What somebody measured on this machine must not decide what is tested.
os.environ["SIEVE_KERNELS_TUNING"] = "off"
