"""The plugin is a distribution of its own: its folder is not installed with Sieve."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "packages" / "sieve-vllm"))
