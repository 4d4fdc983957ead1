"""Configs of launches: from measured choices, the nearest GPU's, or the cost model; always ones that fit the device."""

import json
from dataclasses import replace
from itertools import product

import pytest
import torch

from sieve_kernels.autotune import __main__ as tune
from sieve_kernels.autotune import config as module
from sieve_kernels.autotune.config import ANY, SPLITTABLE, GemmConfig, GemmShape, recorded
from sieve_kernels.autotune.measure import Measured
from sieve_kernels.core import decisions, dispatch, tuning_cache
from sieve_kernels.core.cases import CASES
from sieve_kernels.core.problems import Problem

pytest.importorskip("triton")
from sieve_kernels.common import gemm
from sieve_kernels.gram import tiling, triton_backend
from sieve_kernels.lowrank.triton import gemv_launch, gemv_quantized, grouped, linear, pivoted, population, quantized
from sieve_kernels.mlp import triton_backend as gated
from sieve_kernels.mlp import triton_gemv

CPU = torch.device("cpu")
KERNELS = (
    gemm.MATMUL,
    gemm.SUMMED_MATMUL,
    triton_backend.GRAM,
    tiling.GRAM_TMA,
    linear.FUSED,
    pivoted.SCATTER_MATMUL,
    population.POPULATION,
    quantized.QUANTIZED,
    grouped.GROUPED,
    gemv_launch.GEMV,
    gemv_quantized.INTEGERS_GEMV,
    gated.SWIGLU,
    triton_gemv.GEMV_GLU,
)
interpreted = pytest.mark.skipif(not dispatch.INTERPRETED, reason="calls kernels with tensors on CPU")
SHAPE = GemmShape(16, (1216,), (4096,), torch.bfloat16, CPU)
TOY = GemmConfig(16, 64, 64, num_warps=2, num_stages=2)


@pytest.fixture(autouse=True)
def fresh(monkeypatch, tmp_path):
    monkeypatch.delenv(dispatch.VARIABLE, raising=False)
    monkeypatch.setenv(tuning_cache.VARIABLE, str(tmp_path))
    decisions.forget()
    yield
    decisions.forget()


def store(config, shape=SHAPE, kernel="gemv", **changes):
    dtype, bits, M, N, K, traits = shape.key
    entry = {"kernel": kernel, "dtype": dtype, "bits": bits, "M": M, "N": N, "K": K, "traits": traits}
    value = vars(config) if isinstance(config, GemmConfig) else config
    file, name = tuning_cache.path(CPU), tuning_cache.device_name(CPU)
    tuning_cache.write(file, name, [], configs=[entry | {"config": value, "seconds": {}} | changes])
    decisions.forget()
    return file


def test_names_are_one_each_and_every_kernel_is_listed():
    """A launcher's kernel that is not in this test's list would not be held to it."""
    assert len({kernel.name for kernel in KERNELS}) == len(KERNELS)
    modules = (gemm, triton_backend, tiling, linear, pivoted, population, quantized, grouped, gemv_launch)
    found = {
        id(value)
        for place in (*modules, gemv_quantized, gated, triton_gemv)
        for value in vars(place).values()
        if isinstance(value, module.TunedKernel)
    }
    assert found == set(map(id, KERNELS))


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)
@pytest.mark.parametrize("memory", [48 << 10, 99 << 10, 227 << 10])
@pytest.mark.parametrize("num_sms", [1, 20, 132])
def test_every_device_gets_configs_that_fit(kernel, memory, num_sms, pretend):
    """A GPU without descriptors, with little shared memory, or unknown."""
    if kernel is tiling.GRAM_TMA and memory < room_for_tma():
        pytest.skip("asked only where there is room for its largest tiles")
    pretend(architecture="sm_1", num_sms=num_sms, shared_memory=memory)
    for shape in shapes_of(kernel):
        assert kernel.supports(kernel.choose(shape), shape)
        assert all(kernel.supports(one, shape) for one in kernel.candidates(shape))


def shapes_of(kernel):
    """What the kernel is asked for: few rows, 16 bits, integers, as the operators have it."""
    few, integers = "gemv" in kernel.name, kernel.name in ("integers_gemv", "quantized")
    narrow = few or kernel.name in ("grouped", "gram_tma")
    dtypes = (torch.bfloat16,) if narrow else (torch.bfloat16, torch.float32, torch.float64)[: 2 if integers else 3]
    for M, dtype in product((1, 7, 32) if few else (1, 7, 64, 5000), dtypes):
        for bits in (8, 4) if integers else (8 * dtype.itemsize,):
            for traits in ((), (SPLITTABLE,), (module.UNALIGNED,)):
                yield GemmShape(M, (130, 64), (96, 4096), dtype, CPU, bits, frozenset(traits))


def room_for_tma() -> int:
    from sieve_kernels.gram import triton_tma

    return triton_tma.SHARED


def test_shapes_are_in_classes():
    assert [tuning_cache.fine_class(size) for size in (0, 1, 5, 8, 9, 1024, 1025, 1216, 1281, 2112)] == [
        *(0, 1, 5, 8, 10, 1024, 1280, 1280, 1536, 2560)
    ]
    assert SHAPE.key == replace(SHAPE, M=9, Ns=(1100, 60)).key
    assert SHAPE.key != replace(SHAPE, M=17).key != replace(SHAPE, traits=frozenset(("second phase",))).key


def test_a_measured_config_is_above_the_cost_model():
    before, toy = gemv_launch.GEMV.choose(SHAPE), GemmConfig(16, 32, 64)
    file = store(toy)
    with recorded() as launches:
        assert gemv_launch.GEMV.choose(SHAPE) == toy
        assert gemv_launch.GEMV.choose(replace(SHAPE, M=17)) == gemv_launch.GEMV.cost_model(replace(SHAPE, M=17))
    assert [launch.source for launch in launches] == [f"measured fastest, {file}", "cost model"]
    assert before == gemv_launch.GEMV.cost_model(SHAPE) != toy


@pytest.mark.parametrize(
    "config",
    [
        GemmConfig(16, 4, 64),  # narrower than tensor cores take
        GemmConfig(1, 16, 64),  # for one row
        {"block_m": 16},
        {"block_m": 16, "block_n": 16, "block_k": "64"},
        {"block_m": 16, "block_n": 16, "block_k": 64, "cluster": 2},
    ],
)
def test_a_config_that_cannot_serve_is_passed_over(config):
    store(config)
    assert gemv_launch.GEMV.choose(SHAPE) == gemv_launch.GEMV.cost_model(SHAPE)


def test_nothing_measured_holds_where_tuning_is_off_or_for_tensors_without_memory(monkeypatch):
    store(GemmConfig(16, 32, 64))
    shape = replace(SHAPE, device=torch.device("meta"))
    assert gemv_launch.GEMV.choose(shape) == gemv_launch.GEMV.cost_model(shape)
    monkeypatch.setenv(tuning_cache.VARIABLE, "off")
    assert gemv_launch.GEMV.choose(SHAPE) == gemv_launch.GEMV.cost_model(SHAPE)


def test_the_nearest_gpu_of_its_architecture_says_it(monkeypatch, tmp_path, pretend):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Card")
    monkeypatch.setattr(tuning_cache, "SHIPPED", tmp_path / "configs")
    pretend(architecture="sm_90", num_sms=132, shared_memory=227 << 10)
    near, shape = GemmConfig(16, 32, 64), replace(SHAPE, device=torch.device("cuda", 0))
    dtype, bits, M, N, K, traits = shape.key
    entry = {"kernel": "gemv", "dtype": dtype, "bits": bits, "M": M, "N": N, "K": K, "traits": traits, "seconds": {}}
    for name, architecture, num_sms, config in (("Far", "sm_90", 78, TOY), ("Near", "sm_90", 130, near)):
        hardware = {"architecture": architecture, "num_sms": num_sms}
        entries = [entry | {"config": vars(config)}]
        tuning_cache.write(tuning_cache.SHIPPED / f"{name}.json", name, [], hardware, entries)
    with recorded() as launches:
        assert gemv_launch.GEMV.choose(shape) == near
    assert launches[0].source == f"measured fastest on Near, {tuning_cache.SHIPPED / 'Near.json'}"


@interpreted
def test_explain_names_the_config(monkeypatch):
    """Of every launch, and where it comes from; arguments that operators write to stay as they are."""
    monkeypatch.setenv(dispatch.VARIABLE, "triton_gemv")
    x, A, B = torch.randn(1, 64).bfloat16(), torch.randn(16, 64).bfloat16(), torch.randn(48, 16).bfloat16()
    text = dispatch.explain("lowrank_linear", x, 16, arguments=(x, A, B, None))
    first, second = (
        f"gemv 1×{N}×{K}: {gemv_launch.gemv_config(GemmShape(1, (N,), (K,), x.dtype, CPU))} (cost model)"
        for N, K in ((16, 64), (48, 16))
    )
    assert text.endswith(f"launches overlap); {first}; {second}") or text.endswith(f"{first}; {second}")
    monkeypatch.setenv(dispatch.VARIABLE, "triton")
    out = torch.zeros(20, 20)
    assert "; gram 20×20×3: " in dispatch.explain("gram_", torch.ones(3, 20), arguments=(out, torch.ones(3, 20), None))
    assert not out.any()


@interpreted
def test_a_tuned_kernel_variant_is_one_entry_of_the_list_in_its_file(monkeypatch):
    """As CONTRIBUTING.md says. It is measured beside the others; the launch takes it from the file of choices; and what
    it computes is the product."""
    monkeypatch.setenv(dispatch.VARIABLE, "triton")
    monkeypatch.setitem(gemm.CONFIGS, ANY, (TOY,))
    monkeypatch.setattr("sieve_kernels.autotune.measure.medians", fastest_is(TOY))
    case = next(case for case in CASES if case.name == "linear")
    monkeypatch.setattr(
        "sieve_kernels.autotune.measure.candidates",
        lambda operator, call: [one for one in dispatch.TABLE[operator] if one.name == "triton"],
    )
    problem = Problem(70, 64, 80, 0, torch.bfloat16)
    measured = Measured(CPU, 1)
    with torch.inference_mode():
        (entry,) = measured.add(case, problem)
        assert measured.add(case, problem) == []
    assert entry["config"] == vars(TOY)
    shape = GemmShape(problem.T, (problem.m,), (problem.n,), problem.dtype, CPU, traits=frozenset((SPLITTABLE,)))
    default = gemm.MATMUL.choose(shape)
    assert list(entry["seconds"]) == [str(default), str(TOY)]
    tuning_cache.write(tuning_cache.path(CPU), tuning_cache.device_name(CPU), [], configs=[entry])
    decisions.forget()
    x, W = torch.randn(70, 64).bfloat16(), torch.randn(80, 64).bfloat16()
    with recorded() as launches:
        y = dispatch.implementation("linear", x)(x, W, None)
    assert [launch.config for launch in launches] == [TOY]
    torch.testing.assert_close(y, x @ W.T)


def fastest_is(config: GemmConfig):
    """A clock for which this candidate is the fastest. Calls are made, so that each candidate must work."""

    def medians(works, device, rounds):
        for work in works.values():
            work()
        return {name: 1.0 if str(name) == str(config) else 2.0 for name in works}

    return medians


def test_the_command_writes_configs(monkeypatch, capsys):
    """Beside choices; `--no-configs` leaves them out."""
    entry = {
        "kernel": "gemv",
        "dtype": "bfloat16",
        "bits": 16,
        "M": 1,
        "N": 8,
        "K": 8,
        "traits": "",
        "seconds": {"a": 1},
    }
    monkeypatch.setattr(
        Measured,
        "add",
        lambda self, case, problem: self.configs.update({1: entry | {"config": vars(TOY)}}) or [entry],
    )
    assert tune.main(["--device", "cpu", "--operators", "linear", "--rows", "1"]) == 0
    assert "0 choices and 1 configs" in capsys.readouterr().out
    assert json.loads(tuning_cache.path(CPU).read_text())["configs"][0]["config"] == vars(TOY)
