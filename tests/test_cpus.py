"""`make test-cpus` has files to run, and every instruction set, thread count and capability of torch in some run."""

import pytest

from tests.cpus import CAPABILITIES, combinations, files


def test_every_file_is_there():
    named = {file.name for file in files()}
    assert all(file.is_file() for file in files())
    assert {"test_lowrank.py", "test_mlp.py", "test_gram.py", "test_pointwise.py", "test_likelihood.py"} <= named


@pytest.mark.parametrize("isas", [("none",), ("none", "portable"), ("none", "portable", "avx2", "avx512", "amx")])
def test_every_value_is_tried(isas):
    runs = combinations(isas)
    assert {run["SIEVE_KERNELS_ISA"] for run in runs} == set(isas)
    assert {run["ATEN_CPU_CAPABILITY"] for run in runs} == set(CAPABILITIES)
    assert {run["OMP_NUM_THREADS"] for run in runs} == {"1", "2"}
