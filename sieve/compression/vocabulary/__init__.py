"""Fewer tokens: a tokenizer that reads and writes every text as before, and a model with a row for each token kept."""
