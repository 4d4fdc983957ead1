"""Which implementation is fastest on this device: python -m sieve_kernels.autotune."""
