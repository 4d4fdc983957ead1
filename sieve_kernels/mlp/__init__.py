"""Gated layers whose weights are products of two thin factors."""
