"""Searching: from nested factors and a task to the smallest plan within the tolerance."""
