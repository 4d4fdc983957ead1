"""Statistics and weights → nested low-rank factors, by method."""

from sieve.projections.factors import FactorPair, Factors
from sieve.projections.pivot import pivot, pivoted
from sieve.projections.project import project

__all__ = ["FactorPair", "Factors", "pivot", "pivoted", "project"]
