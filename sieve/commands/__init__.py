"""The commands, one in a file; `sieve/cli.py` lists them."""
