"""One pass over task data: which statistics a method needs, collecting them, keeping them."""

from sieve.calibration.collect import calibrate
from sieve.calibration.keep import require_place
from sieve.calibration.statistics import Source, Statistics

__all__ = ["Source", "Statistics", "calibrate", "require_place"]
