"""Statistics and weights → nested low-rank factors, by method."""

from sieve.projections.factors import FactorPair, Factors, slices_of
from sieve.projections.pivot import pivot, pivoted
from sieve.projections.project import project
from sieve.projections.refit import refit

__all__ = ["FactorPair", "Factors", "pivot", "pivoted", "project", "refit", "slices_of"]
