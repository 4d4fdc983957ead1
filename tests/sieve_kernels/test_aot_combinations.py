"""Every combination of dtypes that launchers take compiles for a GPU that is not there, and counts each number once."""

import json
import os
import subprocess
import sys

import pytest

from sieve_kernels.aot.combinations import counted_twice

FEW = ["gram_ torch.bfloat16 in torch.float64", "(4, 4) bits 2 rows torch.float32", "rotary torch.bfloat16"]
"""One of each kind that some version of Triton has got wrong."""

DOT = """
#mma = #ttg.nvidia_mma<{versionMajor = 2, versionMinor = 0, warpsPerCTA = [1, 4], instrShape = [16, 8]}>
%1 = tt.dot %a, %b, %c : tensor<16xLENGTHxf32, #ttg.dot_op<{opIdx = 0, parent = #mma, kWidth = 8}>> * …
"""


@pytest.mark.parametrize("names", [FEW, pytest.param([], marks=pytest.mark.slow)], ids=["few", "all"])
def test_combinations(names):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "sieve_kernels.aot.combinations", *names]
    found = json.loads(subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True).stdout)
    assert found["combinations"] >= len(names or range(50))
    assert found["faults"] == []


def test_a_short_product_of_packed_numbers():
    """What Triton 3.6 makes of float32 times 4 bits in steps of 16."""
    assert "of which each of four threads holds 8" in counted_twice(DOT.replace("LENGTH", "16"))
    assert counted_twice(DOT.replace("LENGTH", "32")) is None
    wide = DOT.replace("versionMajor = 2", "versionMajor = 3")
    assert counted_twice(wide.replace("LENGTH", "16")) is None
