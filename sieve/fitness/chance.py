"""What a model scores that knows nothing of a task: by chance, and by always giving the most frequent answer."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from sieve.fitness.metrics import score_answer
from sieve.tasks import Example, Task


@dataclass(frozen=True)
class Chance:
    """Expected scores in [0, 1] on N examples.

    chance: of guessing, the mean of 1 / number of choices; None where answers are written.
    majority: of the one answer that is right most often, given to every example.
    """

    chance: float | None
    majority: float

    @property
    def best(self) -> float:
        """The higher of the two: what a model must beat to show that it does the task."""
        return max(self.majority, self.chance or 0.0)

    def __str__(self) -> str:
        guessing = "" if self.chance is None else f"chance {self.chance:.3f}, "
        return f"{guessing}majority class {self.majority:.3f}"


def chance_level(task: Task, examples: Sequence[Example]) -> Chance | None:
    """What knowing nothing scores on `examples` of `task`; None for perplexity, where nothing is right or wrong.

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
