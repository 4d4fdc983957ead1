"""Kernels compiled ahead of time for GPUs that this machine need not have: python -m sieve_kernels.aot."""
