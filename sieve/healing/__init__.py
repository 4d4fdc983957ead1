"""Gradient steps after the closed form: a pruned model learns from its dense one what single matrices cannot keep."""
