"""Scores of many candidates with as little work as the result allows."""
