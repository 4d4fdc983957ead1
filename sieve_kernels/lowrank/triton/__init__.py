"""Triton kernels of the family and their launchers, one operator a file."""
