"""All methods compared: quality, time and memory. `python -m bench.methods --help`."""
