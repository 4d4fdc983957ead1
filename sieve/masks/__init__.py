"""Statistics and weights → masks: importance scores, task-aware fusion, N:M patterns, compensated weights."""

from sieve.masks.apply import mask_, masked
from sieve.masks.mask import mask
from sieve.masks.masks import CompensatedMask, Mask, Masks
from sieve.masks.matrix import MaskedMatrix
from sieve.masks.scores import SCORES
from sieve.options.masks import MaskOptions

__all__ = ["SCORES", "CompensatedMask", "Mask", "MaskOptions", "MaskedMatrix", "Masks", "mask", "mask_", "masked"]
