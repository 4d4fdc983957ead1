"""Which implementation a call takes, and what the package needs to be imported."""

import subprocess
import sys

import pytest
import torch

from sieve_kernels import SettingError, check_settings
from sieve_kernels.autotune import __main__ as tune
from sieve_kernels.core import dispatch, library, tuning_cache

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def no_override(monkeypatch):
    monkeypatch.delenv(dispatch.VARIABLE, raising=False)


def choose(operator, call, override=None):
    rule, _ = dispatch._choose(operator, call, override)
    return rule.name


@pytest.fixture
def without_compiled(monkeypatch):
    """A machine on which nothing could be compiled."""
    monkeypatch.setattr(library, "library", lambda: None)
    monkeypatch.setattr(library, "has_amx", lambda: False)


JOINTS = {"rms_norm", "rotary", "act_mul", "act_mul_backward", "join_columns", "gather_columns"}
BY_TORCH = {"channel_sums", "lowrank_mlp"}  # no Triton kernel of their own


@pytest.mark.parametrize("operator", sorted(set(dispatch.TABLE) - {"lowrank_mlp"}))
def test_cpu_tensors_take_library_products(operator, without_compiled):
    assert choose(operator, dispatch.Call(CPU, torch.float32, 8, 4)) == "torch"
    assert choose(operator, dispatch.Call(CPU, torch.float32, 8, 4), "cpp") == "torch"


def test_compiled_kernels_where_they_can_serve(monkeypatch):
    monkeypatch.setattr(library, "library", lambda: "a library")
    for amx, dtype, rows, name in (
        (False, torch.bfloat16, 8, "cpp"),
        (False, torch.bfloat16, 9, "torch"),
        (True, torch.bfloat16, 9, "cpp"),
        (True, torch.float32, 8, "cpp"),
        (True, torch.float32, 9, "torch"),
        (True, torch.float16, 1, "torch"),
    ):
        monkeypatch.setattr(library, "has_amx", lambda amx=amx: amx)
        assert choose("lowrank_linear", dispatch.Call(CPU, dtype, rows, 4)) == name


@pytest.mark.parametrize("operator", sorted(set(dispatch.TABLE) - BY_TORCH - JOINTS))
def test_a_gpu_takes_triton_for_few_rows_and_products_of_the_library_for_many(operator):
    few, many = (dispatch.Call(GPU, torch.bfloat16, rows, 4) for rows in (dispatch.GEMV_ROWS_GPU, 1000))
    always = "torch" if "backward" in operator and "population" not in operator else "triton"
    assert choose(operator, few).startswith(always)
    assert choose(operator, many) == ("triton" if operator in ONLY_TRITON else "torch")
    assert choose(operator, many, "triton") == "triton"
    wide = dispatch.Call(GPU, torch.float32, 1, 4)
    assert choose(operator, wide) == ("triton" if operator in {*ONLY_TRITON, "lowrank_linear_quantized"} else "torch")


def test_few_rows_of_16_bits_take_the_kernels_for_them():
    most = dispatch.GEMV_ROWS_GPU
    for dtype, rows, name in ((torch.bfloat16, 1, "triton_gemv"), (torch.float16, most, "triton_gemv")):
        assert choose("lowrank_linear_pivoted", dispatch.Call(GPU, dtype, rows, 4)) == name
    for dtype, rows in ((torch.bfloat16, 0), (torch.bfloat16, most + 1), (torch.float32, 1)):
        assert choose("lowrank_linear_pivoted", dispatch.Call(GPU, dtype, rows, 4)) != "triton_gemv"


ONLY_TRITON = {"gram_", "cross_gram_", "lowrank_linear_population", "lowrank_linear_population_backward"}


@pytest.mark.parametrize("operator", sorted(JOINTS))
def test_a_gpu_takes_triton_between_products(operator):
    for rows in (1, 1000):
        assert choose(operator, dispatch.Call(GPU, torch.bfloat16, rows)) == "triton"


def test_groups_of_some_rows_share_launches_where_tiles_are_copied(monkeypatch, pretend):
    """On GPUs as from Hopper on."""
    monkeypatch.setattr(dispatch, "INTERPRETED", False)
    for has_descriptors, name in ((True, "triton_grouped"), (False, "torch")):
        pretend(has_descriptors=has_descriptors)
        for rows in dispatch.SOME_ROWS_GPU[::100]:
            assert choose("lowrank_linear_group", dispatch.Call(GPU, torch.bfloat16, rows, 4)) == name
    pretend(has_descriptors=True)
    for rows in (128, 513):
        assert choose("lowrank_linear_group", dispatch.Call(GPU, torch.bfloat16, rows, 4)) == "torch"
    assert choose("lowrank_linear_group", dispatch.Call(GPU, torch.float32, 256, 4)) == "torch"


def test_pairs_of_half_a_tile_share_launches_only_if_asked_for(monkeypatch, pretend):
    monkeypatch.setattr(dispatch, "INTERPRETED", False)
    for has_descriptors, name in ((True, "triton_grouped"), (False, "torch")):
        pretend(has_descriptors=has_descriptors)
        for rows in dispatch.HALF_TILE_ROWS[::10]:
            call = dispatch.Call(GPU, torch.bfloat16, rows, 1024)
            assert choose("lowrank_linear", call) == "torch"
            assert choose("lowrank_linear", call, "triton_grouped") == name
    pretend(has_descriptors=True)
    for rows, rank in ((32, 1024), (65, 1024), (64, 1025)):
        call = dispatch.Call(GPU, torch.bfloat16, rows, rank)
        assert choose("lowrank_linear", call, "triton_grouped") != "triton_grouped"


def test_mlp_on_a_gpu():
    few = dispatch.GEMV_ROWS_GPU
    assert choose("lowrank_mlp", dispatch.Call(GPU, torch.bfloat16, few, 4)) == "triton_gemv"
    assert choose("lowrank_mlp", dispatch.Call(GPU, torch.float32, few, 4)) == "torch"
    assert choose("lowrank_mlp", dispatch.Call(GPU, torch.bfloat16, few + 1, 4)) == "torch"


def test_what_is_taken_only_where_it_was_measured(monkeypatch):
    call = dispatch.Call(GPU, torch.bfloat16, 1 << 20, 64)
    assert choose("lowrank_linear", call) == choose("lowrank_linear_pivoted", call) == "torch"
    for operator, name in (("lowrank_linear", "triton_fused"), ("lowrank_linear_pivoted", "torch_expanded")):
        monkeypatch.setattr(tuning_cache, "choice", lambda *_, name=name: tuning_cache.Choice(name, "here"))
        assert choose(operator, call) == name


def test_override_where_it_can_serve():
    call = dispatch.Call(GPU, torch.bfloat16, 80, 128)
    assert choose("lowrank_linear", call, "torch") == "torch"
    assert choose("lowrank_linear", call, "triton_fused") == "triton_fused"
    assert choose("lowrank_linear", dispatch.Call(GPU, torch.bfloat16, 80, 129), "triton_fused") == "torch"
    assert choose("gram_", call, "triton_fused") == "triton"


@pytest.mark.skipif(library.library() is None, reason="the C++ library is not compiled")
def test_names_of_earlier_versions(monkeypatch):
    """In settings, and in files of measured choices."""
    x = torch.randn(1, 4)
    monkeypatch.setenv(dispatch.VARIABLE, "native")
    assert ": cpp (" in dispatch.explain("lowrank_linear", x, 2)
    monkeypatch.setenv(dispatch.VARIABLE, "torch")
    assert ": torch (" in dispatch.explain("lowrank_linear", x, 2)
    monkeypatch.delenv(dispatch.VARIABLE)
    monkeypatch.setattr(tuning_cache, "choice", lambda *_: tuning_cache.Choice("native", "a file"))
    assert dispatch.explain("lowrank_linear", x, 2).endswith(": cpp (a file)")


def test_unknown_override_is_refused():
    with pytest.raises(SettingError, match="SIEVE_KERNELS=cublas is not one of cpp, parts, torch"):
        choose("gram_", dispatch.Call(GPU, torch.float32, 8), "cublas")


def test_settings_are_checked_before_any_call(monkeypatch, capsys):
    for fine in ("", "torch", "triton_fused"):
        monkeypatch.setenv(dispatch.VARIABLE, fine)
        check_settings()
    monkeypatch.setenv(dispatch.VARIABLE, "cublas")
    with pytest.raises(SettingError, match="SIEVE_KERNELS=cublas"):
        check_settings()
    assert tune.main(["--device", "cpu"]) == 2
    assert capsys.readouterr().err.startswith("SIEVE_KERNELS=cublas is not one of ")


def test_explain(monkeypatch, without_compiled):
    x = torch.zeros(2, 5, 8, dtype=torch.bfloat16)
    text = dispatch.explain("lowrank_linear", x, rank=4)
    assert text == "lowrank_linear on cpu, bfloat16, 10 rows, rank 4: torch (two library products)"
    monkeypatch.setenv(dispatch.VARIABLE, "torch")
    assert dispatch.explain("gram_", x).endswith("torch (SIEVE_KERNELS=torch)")


def test_every_entry_loads():
    for rules in dispatch.TABLE.values():
        assert all(callable(rule.load()) for rule in rules if rule.name != "cpp" or library.library())


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_importing_needs_neither_triton_nor_transformers():
    """CPU tensors work without Triton; asking for a GPU kernel says what to install."""
    out = run(
        "import sys; sys.modules['triton'] = sys.modules['transformers'] = sys.modules['sieve'] = None\n"
        "import torch, sieve_kernels as k\n"
        "from sieve_kernels.core import dispatch\n"
        "k.gram_(torch.zeros(2, 2), torch.ones(3, 2))\n"
        "k.lowrank_linear(torch.ones(3, 2), torch.ones(1, 2), torch.ones(4, 1))\n"
        "try: dispatch.TABLE['gram_'][-1].load()\n"
        "except ImportError as error: print(error)\n"
    )
    assert "pip install triton" in out


def test_import_is_light():
    out = run("import sys, sieve_kernels; print([m for m in ('triton', 'transformers', 'sieve') if m in sys.modules])")
    assert out.strip() == "[]"
