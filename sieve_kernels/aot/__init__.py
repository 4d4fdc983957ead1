"""Kernels compiled for GPUs that need not be there: python -m sieve_kernels.aot."""
