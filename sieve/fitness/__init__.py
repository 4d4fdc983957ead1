"""How good a model is at a task: plain, exact evaluation and the uncertainty of its result."""

from sieve.fitness.evaluate import Scores, evaluate

__all__ = ["Scores", "evaluate"]
