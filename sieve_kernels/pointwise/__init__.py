"""Operators between the matrices of a decoder block: normalisation, rotary positions, act · mul, gathered columns."""
