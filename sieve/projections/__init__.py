"""Statistics and weights → nested low-rank factors, by method."""

from sieve.projections.factors import FactorPair, Factors
from sieve.projections.pivot import pivot, pivoted
from sieve.projections.project import METHODS, project

__all__ = ["METHODS", "FactorPair", "Factors", "pivot", "pivoted", "project"]
