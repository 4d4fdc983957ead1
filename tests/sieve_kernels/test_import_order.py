"""Every module of a backend can be the first that is imported: which one a process needs first depends on its calls."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import sieve_kernels

ROOT = Path(sieve_kernels.__file__).parent

TRY_EACH = """
import importlib, os, sys
import torch, triton
for name in sys.argv[1:]:
    child = os.fork()
    if child == 0:
        importlib.import_module(name)
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        sys.exit(f"{name} cannot be imported first")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="tries modules in forked processes")
def test_every_backend_can_come_first():
    pytest.importorskip("triton")
    names = [
        ".".join(("sieve_kernels", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")
        for path in sorted(ROOT.rglob("*.py"))
        if "backend" in path.name or "triton" in str(path.relative_to(ROOT))
    ]
    assert len(names) > 10
    found = subprocess.run([sys.executable, "-c", TRY_EACH, *names], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
