"""The report of a pruned model with a trimmed vocabulary: which numbers are over the same tokens."""

from collections.abc import Mapping
from typing import Any

from sieve.compression.vocabulary.trim import TrimmedVocabulary
from sieve.evaluation.scoring import Scores
from sieve.run.report.intervals import differences, intervals


def trimmed_report(
    report: Mapping[str, Any],
    trimmed: TrimmedVocabulary,
    pruned: Mapping[str, Scores],
    same_tokens: Mapping[str, Scores],
) -> dict[str, Any]:
    """The report with the dense model's likelihoods over the pruned model's tokens. Accuracies stay those of the
    untrimmed dense model, since the tolerance is a promise about that one.

    Args:
        pruned: split → scores of the pruned model.
        same_tokens: split → scores of the dense model over the tokens that were kept.
    """
    dense = intervals(same_tokens)
    compared = differences({split: pruned[split] for split in same_tokens}, same_tokens)
    note = (
        f"likelihoods are over the {len(trimmed.kept):,} of {trimmed.before:,} tokens that were kept, the dense "
        "model's too"
    )
    return {
        **report,
        "vocabulary": {**trimmed.report(), "dense_accuracy": dense["accuracy"]},
        "loglik": report["loglik"] | {"dense": dense["loglik"]},
        "difference": report["difference"] | {"loglik": compared["loglik"]},
        "notes": [*report["notes"], note],
    }
