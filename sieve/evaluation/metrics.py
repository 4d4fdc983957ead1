"""How a generated answer is judged: by words, by a library's metric or by the user's own function."""

import importlib
import importlib.util
import math
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

from sieve.errors import InputError
from sieve.evaluation.normalise import ARTICLES, words
from sieve.utils.messages import one_line

# Maps (answer, references) to a score in [0, 1].
Metric = Callable[[str, Sequence[str]], float]
_LIBRARIES = {"rouge_l": ("rouge_score", "rouge-score"), "bleu": ("sacrebleu",) * 2, "chrf": ("sacrebleu",) * 2}


def score_answer(answer: str, references: Sequence[str], metric: str | Metric, normalise: str = "squad") -> float:
    """The best score of `answer` against any of the references, in [0, 1].

    Args:
        metric: "exact_match" (all words are equal), "contains" (a reference's words stand in the answer one after
            another), "f1" (harmonic mean of precision and recall over words), "rouge_l", "bleu", "chrf", or an own
            function, as "module:function" or itself: (answer, references) → score in [0, 1].
        normalise: "none" | "squad" | "numeric" (see `sieve.evaluation.normalise`): the words that are compared. "bleu",
            "chrf" and own functions see the texts as they are.

    Raises: InputError for no references, an unknown metric, a missing library, or an own function's score that is not
        in [0, 1].

    Example:
        >>> score_answer("The Eiffel Tower.", ["Eiffel tower"], "exact_match")
        1.0
    """
    return metric_function(metric, normalise)(answer, references)


@cache
def metric_function(metric: str | Metric, normalise: str = "squad") -> Metric:
    """The function that judges answers, for many of them. Arguments and errors are those of `score_answer`."""
    if callable(metric):
        return _checked(metric, getattr(metric, "__qualname__", repr(metric)))
    if ":" in metric:
        return _checked(_imported(metric), metric)
    if metric in _LIBRARIES:
        return {"rouge_l": _rouge_l, "bleu": _bleu, "chrf": _chrf}[metric](normalise)
    if metric not in _BY_WORDS:
        known = ", ".join([*_BY_WORDS, *_LIBRARIES])
        raise InputError(f"unknown metric {metric!r}: choose one of {known}, or module:function")
    compare = _BY_WORDS[metric]
    return lambda answer, references: max(compare(answer, one, normalise) for one in _some(references))


def _exact(answer: str, reference: str, mode: str) -> float:
    return float(any(given == right for given, right in _readings(answer, reference, mode)))


def _contains(answer: str, reference: str, mode: str) -> float:
    def within(given: list[str], right: list[str]) -> bool:
        spans = (given[start : start + len(right)] for start in range(len(given) - len(right) + 1))
        return bool(right) and any(span == right for span in spans)

    return float(any(within(given, right) for given, right in _readings(answer, reference, mode)))


def _f1(answer: str, reference: str, mode: str) -> float:
    """Harmonic mean of the shares of words in common."""
    given, right = words(answer, mode), words(reference, mode)
    if not given or not right or _exact(answer, reference, mode):
        return _exact(answer, reference, mode)
    common = sum((Counter(given) & Counter(right)).values())
    return 2 * common / (len(given) + len(right))


_BY_WORDS = {"exact_match": _exact, "contains": _contains, "f1": _f1}


def _readings(answer: str, reference: str, mode: str) -> list[tuple[list[str], list[str]]]:
    """Words of both texts without articles, and with them: an article in one text may be a letter in the other."""
    readings = [(words(answer, mode), words(reference, mode))]
    if mode != "none" and any(word not in ARTICLES for word in readings[0][1]):
        readings.append((words(answer, mode, articles=True), words(reference, mode, articles=True)))
    return readings


def _rouge_l(mode: str) -> Metric:
    _require("rouge_l")
    from rouge_score.rouge_scorer import RougeScorer

    class Words:
        """A tokenizer for the library, whose own one knows ASCII letters only."""

        def tokenize(self, text: str) -> list[str]:
            return words(text, mode)

    scorer = RougeScorer(["rougeL"], tokenizer=Words())
    return lambda answer, references: scorer.score_multi(_some(references), answer)["rougeL"].fmeasure


def _bleu(mode: str) -> Metric:
    _require("bleu")
    from sacrebleu.metrics import BLEU

    # `effective_order`, because an answer of three words has no 4-grams.
    bleu = BLEU(effective_order=True)
    return lambda answer, references: min(bleu.sentence_score(answer, list(_some(references))).score / 100, 1.0)


def _chrf(mode: str) -> Metric:
    _require("chrf")
    from sacrebleu.metrics import CHRF

    chrf = CHRF()
    return lambda answer, references: min(chrf.sentence_score(answer, list(_some(references))).score / 100, 1.0)


def _require(metric: str) -> None:
    module, package = _LIBRARIES[metric]
    if importlib.util.find_spec(module) is None:
        raise InputError(f"metric {metric} needs {package}, which is not installed; run: pip install {package}")


def _some(references: Sequence[str]) -> Sequence[str]:
    if not references:
        raise InputError("there is no reference to compare an answer with: give at least one")
    return references


def _imported(name: str) -> Metric:
    """The function that "module:function" names; modules in the working directory are found, too."""
    module, _, attribute = name.partition(":")
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        function = getattr(importlib.import_module(module), attribute, None)
    except ImportError as error:
        raise InputError(f"metric {name}: cannot import {module} ({error}): run from the directory it is in") from error
    finally:
        sys.path.remove(here)
    if not callable(function):
        raise InputError(f"metric {name}: {module} has no function {attribute!r}")
    return function


def _checked(function: Metric, name: str) -> Metric:
    def judge(answer: str, references: Sequence[str]) -> float:
        try:
            score = float(function(answer, references))
        except Exception as error:
            # A user's function may raise any exception.
            reason = f"{type(error).__name__}: {one_line(error)}"
            raise InputError(f"metric {name} failed for the answer {answer[:60]!r}: {reason}") from error
        if not 0 <= score <= 1 or math.isnan(score):
            raise InputError(f"metric {name} gave {score} for the answer {answer[:60]!r}: it must be in [0, 1]")
        return score

    return judge
