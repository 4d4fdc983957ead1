"""Structured pruning that others have published: whole blocks or MLP channels go, and a plain model is left."""

from sieve.baselines.depth import MEASURES, choose_blocks, drop_blocks_
from sieve.baselines.width import drop_channels_

__all__ = ["MEASURES", "choose_blocks", "drop_blocks_", "drop_channels_"]
