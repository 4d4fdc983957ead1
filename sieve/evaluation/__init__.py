"""How good a model is at a task: plain, exact evaluation and the uncertainty of its result."""
