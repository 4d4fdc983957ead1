"""The score that letters alone reach: naive Bayes on character n-grams, trained on a task's calibration rows.

A task on which a language model is no better than this does not show what the model knows. Two classifiers are tried:
one predicts the answer from the letters of the *prompt*; the other looks for letters that right *choices* have and
wrong ones lack, for questions whose choices are whole sentences. A quarter of the training rows decides which of the
two is used and how strongly its counts are smoothed.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from scipy.sparse import csr_matrix

from sieve.evaluation.metrics import score_answer
from sieve.tasks import Example, Task

# Characters of the longest n-gram.
LONGEST = 5
# Values to choose from; the chosen one is added to every count.
SMOOTHINGS = (0.01, 0.1, 1.0)
# With fewer training rows there is no classifier.
FEWEST = 8
# Only this many characters of a text are read.
_CHARACTERS = 4000

# The index of a choice, or a written text.
Answer = int | str
# Maps a smoothing to an answer for each example.
Predict = Callable[[float], list[Answer]]


def ngram_accuracies(
    task: Task,
    training: Sequence[Example],
    splits: Mapping[str, Sequence[Example]],
    answers: Sequence[Answer] | None = None,
) -> dict[str, float]:
    """The classifier's mean score on each of the splits, in [0, 1], judged as the task judges a model.

    Args:
        training: of the calibration split, at least `FEWEST`.
        answers: used as the training rows' answers instead of the right ones. With a model's answers, the result is
            the score of letters without any label.

    Returns: split → score; nothing where there is no classifier: for perplexity, and for few training rows.

    Example:
        >>> ngram_accuracies(task, splits["calibration"], {"test": splits["test"]})
        {"test": 0.254}
    """
    examples = [one for part in splits.values() for one in part]
    if task.type == "perplexity" or len(training) < FEWEST or not examples:
        return {}
    if answers is None:
        answers = [one.answer if one.choices else one.references[0] for one in training]
    kinds = (_by_prompts, _by_choices) if task.type == "multiple_choice" else (_by_prompts,)
    # Hold the last quarter back, not random rows: rows of one group lie side by side.
    fit = len(training) - len(training) // 4
    tried = [
        (_agreement(task, training[fit:], answers[fit:], predict(smoothing)), kind, smoothing)
        for kind, predict in ((kind, kind(training[:fit], answers[:fit], training[fit:])) for kind in kinds)
        for smoothing in SMOOTHINGS
    ]
    _, kind, smoothing = max(tried, key=lambda one: one[0])
    given = iter(kind(training, answers, examples)(smoothing))
    return {name: _score(task, part, [next(given) for _ in part]) for name, part in splits.items() if part}


def _by_prompts(training: Sequence[Example], answers: Sequence[Answer], examples: Sequence[Example]) -> Predict:
    """P(answer's text | n-grams of the prompt): one class for each text that is an answer in the training rows."""
    # Give every answer text of the training rows a class, and sum the n-gram counts of its prompts.
    texts = [
        one.choices[answer].strip() if one.choices else answer for one, answer in zip(training, answers, strict=True)
    ]
    classes = {text: number for number, text in enumerate(dict.fromkeys(texts))}
    known, seen = _counts(_contents([*training, *examples]), len(training))
    owners = csr_matrix((np.ones(len(texts)), ([classes[text] for text in texts], range(len(texts)))))
    sums, prior = owners @ known, np.asarray(owners.sum(1)).ravel()

    def predict(smoothing: float) -> list[Answer]:
        scores = _naive_bayes(seen, sums, prior, smoothing)
        # The score of an answer that no training row has.
        nothing = csr_matrix((1, sums.shape[1]))
        unknown = _naive_bayes(seen, nothing, np.zeros(1), smoothing, prior.sum())[:, 0]
        # Take the best class, or of given choices the best one; a choice that is no class scores as unknown.
        if not examples[0].choices:
            return [list(classes)[best] for best in scores.argmax(1)]
        return [
            int(
                np.argmax(
                    [row[classes[text]] if (text := choice.strip()) in classes else new for choice in one.choices]
                )
            )
            for one, row, new in zip(examples, scores, unknown, strict=True)
        ]

    return predict


def _by_choices(training: Sequence[Example], answers: Sequence[Answer], examples: Sequence[Example]) -> Predict:
    """P(right | n-grams of the choice): how right choices look, independent of the question."""
    right = [
        place == answer for one, answer in zip(training, answers, strict=True) for place in range(len(one.choices))
    ]
    texts = [choice for one in (*training, *examples) for choice in one.choices]
    known, seen = _counts(texts, len(right))
    owners = csr_matrix((np.ones(len(right)), (np.array(right, dtype=int), range(len(right)))), shape=(2, len(right)))
    sums, prior = owners @ known, np.asarray(owners.sum(1)).ravel()

    def predict(smoothing: float) -> list[Answer]:
        wrong, good = _naive_bayes(seen, sums, prior, smoothing).T
        log_odds = np.split(good - wrong, np.cumsum([len(one.choices) for one in examples])[:-1])
        return [int(values.argmax()) for values in log_odds]

    return predict


def _naive_bayes(
    seen: csr_matrix, sums: csr_matrix, prior: np.ndarray, smoothing: float, total: float | None = None
) -> np.ndarray:
    """log P(class) + Σ log P(n-gram | class), up to what is the same for all classes: float64 [examples, classes].

    Args: seen [examples, n-grams], sums [classes, n-grams] and prior [classes]: counts; total of all priors.
    """
    sizes = np.asarray(sums.sum(1)).ravel()
    counted = csr_matrix((np.log1p(sums.data / smoothing), sums.indices, sums.indptr), sums.shape)
    normalizers = np.log(sizes + smoothing * sums.shape[1])
    lengths = np.asarray(seen.sum(1))
    classes = np.log((prior + 0.5) / (prior.sum() if total is None else total))
    return (seen @ counted.T).toarray() - lengths * normalizers + classes


def _counts(texts: Sequence[str], known: int) -> tuple[csr_matrix, csr_matrix]:
    """Counts [texts, n-grams] of the n-grams of the first `known` texts, in these texts and in the others."""
    columns: dict[str, int] = {}
    values, indices, ends = [], [], [0]
    for number, text in enumerate(texts):
        for gram, count in _grams(text).items():
            if number < known:
                columns.setdefault(gram, len(columns))
            if gram in columns:
                indices.append(columns[gram])
                values.append(float(count))
        ends.append(len(indices))
    every = csr_matrix((values, indices, ends), (len(texts), max(len(columns), 1)))
    return every[:known], every[known:]


def _grams(text: str) -> Counter[str]:
    text = f"\x02{text.strip().casefold()[:_CHARACTERS]}\x03"
    return Counter(text[i : i + n] for n in range(1, LONGEST + 1) for i in range(len(text) - n + 1))


def _contents(examples: Sequence[Example]) -> list[str]:
    """Prompts without their common beginning: instructions and solved examples."""
    prompts = [one.prompt for one in examples]
    # In sorted order, all prompts between the first and the last share what these two have in common.
    first, last = min(prompts), max(prompts)
    common = next((place for place, pair in enumerate(zip(first, last, strict=False)) if len(set(pair)) > 1), 0)
    words = len(first[:common].rpartition(" ")[0])
    return [prompt[words:] for prompt in prompts]


def _agreement(task: Task, examples: Sequence[Example], answers: Sequence[Answer], given: Sequence[Answer]) -> float:
    """The fraction of given answers that equal the answers the classifier should learn."""
    if examples[0].choices:
        return float(np.mean([one == other for one, other in zip(given, answers, strict=True)]))
    scores = [
        score_answer(one, (other,), task.metric, task.normalise) for one, other in zip(given, answers, strict=True)
    ]
    return float(np.mean(scores))


def _score(task: Task, examples: Sequence[Example], given: Sequence[Answer]) -> float:
    if examples[0].choices:
        return float(np.mean([answer == one.answer for answer, one in zip(given, examples, strict=True)]))
    scores = [
        score_answer(answer, one.references, task.metric, task.normalise)
        for answer, one in zip(given, examples, strict=True)
    ]
    return float(np.mean(scores))
