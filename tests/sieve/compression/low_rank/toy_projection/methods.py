"""A row as in `sieve/compression/low_rank/methods.py`, with the options of this method alone."""

from dataclasses import dataclass

from sieve.compression.low_rank.methods import Projection
from sieve.registry import register
from sieve.utils.options import option


@dataclass(frozen=True)
class LevelledConfig:
    """levelling: what is added to the inputs' Gram matrix, times its mean diagonal."""

    GROUP = "Method"

    levelling: float = option(0.5, "Share of white noise in the inputs", within="[0, ∞)")


LEVELLED = Projection(
    "levelled",
    "least error of the outputs, of inputs with noise",
    side="input",
    options=LevelledConfig,
    room=__package__,
)

register(LEVELLED)
