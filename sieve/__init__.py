"""Sieve: the smallest language model that still does your task."""
