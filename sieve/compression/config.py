"""Which method makes the model smaller."""

from dataclasses import dataclass

from sieve.registry import searchable
from sieve.utils.options import option


@dataclass(frozen=True)
class CompressionConfig:
    """method: name of a projection or of a mask's scores."""

    GROUP = "Method"

    method: str = option("output_aligned", "Method, see `sieve methods`", choices=searchable)
