"""The benchmarks are tested on the same small world as the driver."""

from tests.sieve.conftest import world

__all__ = ["world"]
