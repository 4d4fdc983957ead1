"""The table of `python -m bench.gpu`: its names, what follows from others, and the files that it is written to."""

import json
import stat

import pytest

from bench.gpu.budget import Budget
from bench.gpu.parts import PARTS
from bench.gpu.runner import Outcome
from bench.gpu.sizes import FULL, SMOKE, ranks
from bench.gpu.summary import Summary
from bench.gpu.wanted import EXTREMES, WANTED, derived

ACCEPTED = (
    "tests.failed",
    "host_over_two.lowrank_linear",
    "pair_over_dense.t1.4096x4096",
    "pair_over_dense.t16.4096x4096",
    "pair_over_dense.t1.14336x4096",
    "pair_over_two.worst",
    "gram_over_library.4096",
    "decoder.graph.b1",
    "decoder.graph.b16",
    "decoder.graph.b1.of_bound",
    "decoder.eager.b1",
    "prefill.8x2048",
)
"""Cells that others look for by these names."""

IDENTITY = {"device": "GPU 1", "driver": "580", "torch": "2.11", "triton": "3.6", "commit": "abc"}


def names(sizes) -> list[str]:
    return [cell for part in PARTS.values() for job in part.jobs(sizes) for cell in job.cells]


def test_every_name_has_one_job():
    """What is wanted is measured, and no cell twice."""
    cells = names(FULL)
    assert len(cells) == len(set(cells))
    assert {*ACCEPTED, *WANTED} <= {*cells, *EXTREMES}
    assert set(ACCEPTED) <= set(WANTED)
    jobs = [job.name for part in PARTS.values() for job in part.jobs(FULL)]
    assert len(jobs) == len(set(jobs))


def test_ranks_keep_half_of_the_parameters():
    for m, n in FULL.few_shapes:
        plain, pivoted = ranks(m, n)
        assert plain % 64 == pivoted % 64 == 0
        for size in (plain * (m + n), pivoted * (m + n - pivoted)):
            assert 0.5 <= size / (m * n) < 0.52


def test_the_worst_of_many_rows():
    cells = {"pair_over_two.t64.8x8": 1.2, "pair_over_two.t128.8x8": 0.9, "pair_over_few_two.t1.8x8": 9.0}
    found, which = derived(cells)
    assert found == {"pair_over_two.worst": 1.2, "pair_over_two.best": 0.9}
    assert which["pair_over_two.worst"] == "pair_over_two.t64.8x8"
    assert derived({"gram_over_library.64": 1.0}) == ({}, {})


def test_budget_hands_on_what_is_left():
    now = 0.0
    budget = Budget(100, [1, 1, 2], lambda: now)
    assert budget.next() == 25
    now = 5.0  # the first took 5 of its 25 s
    assert budget.next() == pytest.approx(95 / 3)
    now = 70.0
    assert budget.next() == 30
    budget, now = Budget(10, [1, 1], lambda: now), 100.0
    assert budget.next() == 0


def test_summary(tmp_path):
    """What a reader and a program find; nothing temporary stays, and what is missed is named."""
    summary = Summary(tmp_path / "results", IDENTITY | {"more": "left out"})
    summary.add(Outcome(cells={"pair_over_two.t64.8x8": 1.25, "gram_over_library.4096": 0.6543216}))
    summary.add(Outcome(failed={"decoder.graph.b1": "ValueError: no"}, left_out={"tests": "the time was up"}))
    assert {file.name for file in summary.folder.iterdir()} == {"summary.json", "summary.md"}
    assert stat.S_IMODE((summary.folder / "summary.json").stat().st_mode) == 0o644
    content = json.loads((summary.folder / "summary.json").read_text())
    assert {name: content[name] for name in IDENTITY} == IDENTITY
    assert content["cells"]["pair_over_two.worst"] == 1.25
    assert content["cells"]["gram_over_library.4096"] == 0.65432
    assert content["missed"] == ["pair_over_two.worst", "pair_over_two.best"]
    table = (summary.folder / "summary.md").read_text()
    assert "| pair_over_two.worst | 1.25 (pair_over_two.t64.8x8) | ≤ 1.05 | **no** |" in table
    assert "| gram_over_library.4096 | 0.654 | ≤ 0.7 | yes |" in table
    assert "| decoder.graph.b1 | – | ≥ 1.5 | – |" in table
    assert "- decoder.graph.b1: ValueError: no" in table
    assert "- tests: the time was up" in table


def test_parts_of_one_commit_come_together(tmp_path):
    """A part that is run again replaces its own cells; another commit begins anew."""
    first = Summary(tmp_path, IDENTITY)
    first.add(Outcome(cells={"a": 1.0, "pair_over_two.t64.8x8": 1.5}, failed={"job": "no"}))
    again = Summary(tmp_path, IDENTITY)
    assert again.cells["a"] == 1.0
    again.begin({"job": ("pair_over_two.t64.8x8",)})
    again.add(Outcome(cells={"pair_over_two.t128.8x8": 0.5}))
    content = json.loads((tmp_path / "summary.json").read_text())
    assert content["failed"] == {}
    assert content["cells"]["a"] == 1.0
    assert content["cells"]["pair_over_two.worst"] == 0.5
    assert Summary(tmp_path, IDENTITY | {"commit": "other"}).cells == {}
    for unsure in ("abc-dirty", "unknown"):  # two of these may be different code
        Summary(tmp_path, IDENTITY | {"commit": unsure}).add(Outcome(cells={"a": 1.0}))
        assert Summary(tmp_path, IDENTITY | {"commit": unsure}).cells == {}
    (tmp_path / "summary.json").write_text("{")
    assert Summary(tmp_path, IDENTITY).cells == {}


def test_small_sizes_try_every_kind_of_cell():
    """The first words of the names are those of the full table, but for the second model."""
    kinds = {cell.partition(".")[0] for cell in names(FULL)}
    assert kinds - {cell.partition(".")[0] for cell in names(SMOKE)} == {"smollm2"}
