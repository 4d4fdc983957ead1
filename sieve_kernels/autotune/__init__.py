"""Find the fastest implementations and configs on this device: python -m sieve_kernels.autotune."""
