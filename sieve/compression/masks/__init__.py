"""Statistics and weights → masks: importance scores, task-aware fusion, N:M patterns, compensated weights."""
