"""What a user can choose about the vocabulary."""

from dataclasses import dataclass

from sieve.utils.options import option


@dataclass(frozen=True)
class VocabularyConfig:
    """trim_vocabulary: first drop the tokens that the task's calibration split does not need (`trim_vocabulary_`)."""

    GROUP = "Method"

    trim_vocabulary: bool = option(False, "Drop the tokens that the calibration split does not need")
