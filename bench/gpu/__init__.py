"""What a GPU makes of this project: tests, table and measured choices in one command (`python -m bench.gpu`)."""
