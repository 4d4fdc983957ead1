"""What is scored without a language model: by chance, by the most frequent answer, and by letters alone."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from sieve.evaluation.metrics import score_answer
from sieve.evaluation.ngrams import ngram_accuracies
from sieve.tasks import Example, Task


@dataclass(frozen=True)
class Chance:
    """Expected scores in [0, 1] on N examples.

    chance: the score of guessing, the mean of 1 / number of choices; None where answers are written.
    majority: the score of the one answer that is right most often, given to every example.
    ngrams: the score of a classifier of letters, trained on the calibration rows (`sieve.evaluation.ngrams`); None if
        there is none.
    """

    chance: float | None
    majority: float
    ngrams: float | None = None

    @property
    def best(self) -> float:
        """The highest of these scores: a model must beat it to show that it does the task."""
        return max(self.majority, self.chance or 0.0, self.ngrams or 0.0)

    def __str__(self) -> str:
        guessing = "" if self.chance is None else f"chance {self.chance:.3f}, "
        letters = "" if self.ngrams is None else f", n-gram classifier {self.ngrams:.3f}"
        return f"{guessing}majority class {self.majority:.3f}{letters}"


def control_levels(
    task: Task, splits: Mapping[str, Sequence[Example]], training: Sequence[Example]
) -> dict[str, Chance | None]:
    """`chance_level` of each split, with the score of a classifier of letters trained on the `training` rows."""
    letters = ngram_accuracies(task, training, splits)
    levels = {name: chance_level(task, part) for name, part in splits.items()}
    return {name: level and replace(level, ngrams=letters.get(name)) for name, level in levels.items()}


def chance_level(task: Task, examples: Sequence[Example]) -> Chance | None:
    """The score on `examples` without any knowledge; None for perplexity, where no answer is right or wrong.

    The most frequent answer is the place or the text of a choice, whichever is right more often; where answers are
    written, the most frequent reference, judged by the task's metric.

    Example:
        >>> chance_level(task, task.splits()["test"])
        Chance(chance=0.25, majority=0.271)
    """
    if task.type == "perplexity" or not examples:
        return None
    if task.type == "generation":
        return Chance(None, _most_frequent_reference(task, examples))
    right = [Counter(example.answer for example in examples), Counter(example.target.strip() for example in examples)]
    often = max(count for counter in right for count in counter.values())
    return Chance(sum(1 / len(example.choices) for example in examples) / len(examples), often / len(examples))


def _most_frequent_reference(task: Task, examples: Sequence[Example]) -> float:
    """The mean score of the reference that most examples have."""
    counts = Counter(text for example in examples for text in {_same(text): text for text in example.references})
    frequent = counts.most_common(1)[0][0]
    answer = next(text for example in examples for text in example.references if _same(text) == frequent)
    scores = [score_answer(answer, example.references, task.metric, task.normalise) for example in examples]
    return sum(scores) / len(scores)


def _same(text: str) -> str:
    return " ".join(text.casefold().split())
