"""Every method side by side: how good, how long, how much memory. `python -m bench.methods --help`."""
