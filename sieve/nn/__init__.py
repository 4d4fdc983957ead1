"""Modules over the kernels: what takes the place of a dense layer, and how a model runs faster with it."""
