"""Bytes that kernels load and store: exact, and no more than the stored table says."""

import pytest
import torch

from sieve_kernels.aot import __main__ as aot
from sieve_kernels.core.cases import CASES, Case
from sieve_kernels.core.problems import COUNTED, Problem

traffic = pytest.importorskip("sieve_kernels.aot.traffic")
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="counts in Triton's interpreter")

STORED = {tuple(row[key] for key in aot.KEYS["traffic"]): row for row in aot.read()["traffic"]}


def test_counts_are_exact():
    """One program that reads both factors and x once, and writes y once: what the fused kernel does for one tile."""
    case = next(case for case in CASES if case.name == "lowrank_linear fused")
    problem = Problem(64, 64, 64, 64)
    assert traffic.moved(case, problem) == 2 * (4 * 64 * 64 + 64) == case.minimum(problem)


def test_masked_elements_do_not_count():
    case = next(case for case in CASES if case.name == "lowrank_linear fused")
    assert traffic.moved(case, Problem(1, 3, 5, 2)) == 2 * (1 * 3 + 2 * 3 + 5 * 2 + 5 + 1 * 5)


def marked(case: Case):
    """Backward passes launch the kernels of the others, and take the longest."""
    return pytest.param(case, id=case.name, marks=[pytest.mark.slow] * case.name.endswith("backward"))


@pytest.mark.parametrize("case", [marked(case) for case in CASES if case.is_counted])
def test_no_more_than_stored(case: Case):
    """Never below what the algorithm must move, never above what it moved when the table was stored (`make aot`)."""
    for shape, problem in case.problems(COUNTED, torch.bfloat16).items():
        moved, stored = traffic.moved(case, problem), STORED[case.name, shape, "bfloat16"]
        assert stored["minimum"] == case.minimum(problem) <= moved
        assert moved <= stored["moved"], f"{shape}: {moved / stored['minimum']:.4f} × the minimum"
