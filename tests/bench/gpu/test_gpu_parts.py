"""Every job of `python -m bench.gpu` at sizes that a CPU does at once; results are compared with the library's."""

import json
import time
from collections import Counter
from dataclasses import replace

import pytest
import torch

import sieve_kernels
from bench.gpu import ceilings, choices, clock, decoder, few_rows, gram, groups, host, many_rows, pointwise, training
from bench.gpu.contestants import contestants
from bench.gpu.job import Place, WrongResult
from bench.gpu.layers import check
from bench.gpu.sizes import SMOKE
from sieve_kernels.autotune import measure
from sieve_kernels.core import decisions, dispatch, tuning_cache
from sieve_kernels.core import device as devices

PARTS = (ceilings, host, few_rows, many_rows, groups, gram, decoder, pointwise, training)
JOBS = {job.name: job for part in PARTS for job in part.jobs(SMOKE)}


@pytest.fixture
def place(tmp_path) -> Place:
    return Place(torch.device("cpu"), time.monotonic() + 60, tmp_path)


EAGER = "decoder.eager"
"""The same models as in graphs, which a CPU does not have."""


@pytest.mark.parametrize("name", [pytest.param(job, marks=[pytest.mark.slow] * job.startswith(EAGER)) for job in JOBS])
def test_job(name, place):
    """It gives the cells that it promises, all of them positive numbers."""
    cells = JOBS[name].run(place)
    assert cells.keys() == set(JOBS[name].cells)
    assert all(value > 0 for value in cells.values())


def test_contestants_differ_in_their_matrices_only():
    """They share tensors, dense layers are the library's, and half of the prunable parameters is gone."""
    made = contestants(torch.device("cpu"), SMOKE.multiple, tuple(sorted(SMOKE.models["decoder"].items())))
    dense, *others = made.models.values()
    head = dense.lm_head.weight
    assert all(model.lm_head.weight is head for model in others)
    assert all("forward" in model.lm_head.__dict__ for model in (dense, *others))
    assert "forward" not in dense.model.layers[0].mlp.up_proj.__dict__
    blocks = sum(p.nbytes for name, p in dense.named_parameters() if "_proj" in name)
    for kind in ("plain", "pivoted"):
        assert 0.5 <= made.pruned_bytes[kind] / blocks < 0.65
        assert made.pruned_bytes[kind] == sum(
            p.nbytes for name, p in made.models[kind].named_parameters() if "_proj" in name
        )
    assert not [name for name, _ in made.models["free"].named_parameters() if "_proj" in name]


def test_a_wrong_operator_is_not_measured(place, monkeypatch):
    monkeypatch.setattr(sieve_kernels, "lowrank_linear", lambda x, A, B: 1.1 * (x @ A.T @ B.T))
    with pytest.raises(WrongResult, match="lowrank_linear"):
        many_rows.measure(place, 64, 64, 64, SMOKE)
    with pytest.raises(WrongResult):
        check("nan", torch.tensor([float("nan")]), torch.ones(1))


def test_copies_are_cold():
    """So many that going through them reads as much as was asked."""
    sets = clock.copies(lambda: [torch.zeros(100, dtype=torch.int8)], 1000)
    assert len(sets) == 10
    assert len({tensors[0].data_ptr() for tensors in sets}) == 10
    assert len(clock.copies(lambda: [torch.zeros(100, dtype=torch.int8)], 1000, beside=150)) == 4


def test_cold_seconds_are_those_of_a_call():
    """Contenders with lists of different lengths are comparable."""
    wait = lambda: time.sleep(0.002)  # noqa: E731
    taken = clock.cold_seconds({"two": [wait] * 2, "six": [wait] * 6}, torch.device("cpu"), 3)
    assert taken["six"] == pytest.approx(taken["two"], rel=0.5)
    assert 0.002 <= taken["six"] < 0.01


@pytest.mark.parametrize("name", choices.SWEEPS)
def test_sweep(name, place):
    """Of calls that the operator takes: as many entries as there is something to choose, on a CPU."""
    sweep = choices.SWEEPS[name]
    for call, arguments in sweep.calls(place.device, SMOKE):
        dispatch.implementation(sweep.operator, arguments[0], call.rank)(*arguments)
    (job,) = (job for job in choices.jobs(SMOKE) if job.name == f"sweep.{name}")
    cells = job.run(place)
    assert cells.keys() == set(job.cells)
    if cells[f"sweep.{name}"]:
        assert json.loads((place.folder / choices.FILE).read_text())["choices"][0]["operator"] == sweep.operator


@pytest.mark.skipif(not dispatch.INTERPRETED, reason="tries configs with tensors on CPU")
def test_a_sweep_writes_the_configs_that_launches_then_take(place, monkeypatch):
    """All candidates are called; the last one is said to be the fastest."""
    gemv = pytest.importorskip("sieve_kernels.lowrank.triton.gemv_launch")
    roomy = replace(devices.INTERPRETER, shared_memory=227 << 10)
    monkeypatch.setattr(devices, "properties", lambda device: roomy)
    monkeypatch.setattr(measure, "candidates", lambda *_: [_named("lowrank_linear", "triton_gemv")])

    def medians(works, device, rounds):
        assert all(work() is not None for work in works.values())
        return {name: 1.0 / (i + 1) for i, name in enumerate(works)}

    monkeypatch.setattr(measure, "medians", medians)
    monkeypatch.setenv(tuning_cache.VARIABLE, str(place.folder / choices.FILE))
    monkeypatch.setenv(dispatch.VARIABLE, "triton_gemv")
    (job,) = (job for job in choices.jobs(replace(SMOKE, few_shapes=((64, 64),))) if job.name == "sweep.pair")
    assert job.run(place)["sweep.pair"] == 2
    decisions.forget()
    ((_, arguments),) = choices.SWEEPS["pair"].calls(place.device, replace(SMOKE, few_shapes=((64, 64),)))
    chosen = dispatch.configs(_named("lowrank_linear", "triton_gemv"), arguments)
    assert [launch.source for launch in chosen] == [f"measured fastest, {place.folder / choices.FILE}"] * 2
    assert all(launch.config == gemv.GEMV.candidates(launch.shape)[-1] for launch in chosen)
    decisions.forget()


def _named(operator, name):
    return next(one for one in dispatch.TABLE[operator] if one.name == name)


def test_choices_are_measured_and_shipped(place, monkeypatch, tmp_path):
    """Beside the results; the package gets those of full sizes only."""
    monkeypatch.setattr(tuning_cache, "SHIPPED", tmp_path / "configs")
    jobs = {job.name: job for job in choices.jobs(SMOKE)}
    found = {name: job.run(place)[name] for name, job in jobs.items()}
    counts = Counter(entry["operator"] for entry in json.loads((tmp_path / choices.FILE).read_text())["choices"])
    assert counts
    assert all(found[f"choices.{name}"] == counts[name] for name in counts if f"choices.{name}" in found)
    assert not tuning_cache.SHIPPED.exists()
    name = max(found, key=found.get)
    {job.name: job for job in choices.jobs(replace(SMOKE, ships=True))}[name].run(place)
    shipped = tuning_cache.SHIPPED / tuning_cache.file_name(tuning_cache.device_name(place.device))
    assert shipped.read_text() == (tmp_path / choices.FILE).read_text()
