"""The plugin is a separate distribution, so its folder must be put on the path."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "packages" / "sieve-vllm"))
