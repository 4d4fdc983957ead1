"""Tests, benchmark table and tuning on a GPU in one command: `python -m bench.gpu`."""
