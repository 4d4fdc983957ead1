"""Statistics and weights → nested low-rank factors, by method."""
