"""Structured pruning that others have published: whole blocks or MLP channels go, and a plain model is left."""
