"""The compiled CPU kernels: which instruction set and path serves is not visible in the results."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from accuracy import assert_accurate

from sieve_kernels import (
    SettingError,
    channel_sums,
    cross_gram_,
    gram_,
    linear,
    lowrank_linear,
    lowrank_linear_group,
    lowrank_linear_pivoted,
    lowrank_linear_population,
    lowrank_linear_quantized,
    lowrank_swiglu,
    quantize_rows,
    rms_norm,
    rotary,
)
from sieve_kernels.core import dispatch, library
from sieve_kernels.lowrank import cpp_backend, reference, torch_backend

pytestmark = pytest.mark.skipif(library.library() is None, reason=library.status())


def make(*shapes, dtype=torch.bfloat16):
    return [(torch.randn(s) / s[-1] ** 0.5).to(dtype) for s in shapes]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("rows", [*range(1, 10), 31, 33, 129, 300])
def test_every_number_of_rows(rows, dtype):
    """Few rows, many, and blocks of them that end anywhere, on ranks and widths that no tile divides."""
    x, A, B = make((rows, 83), (21, 83), (45, 21), dtype=dtype)
    bias = torch.randn(45).to(dtype)
    exact = F.linear(F.linear(x.double(), A.double()), B.double(), bias.double())
    assert_accurate(lowrank_linear(x, A, B, bias), exact, F.linear(F.linear(x, A), B, bias))


@pytest.mark.parametrize("rows", [1, 5, 40])
def test_weights_long_enough_for_several_threads(rows):
    x, A, B, C = make((rows, 1024), (300, 1024), (2000, 300), (1700, 300))
    exact = F.linear(F.linear(x.double(), A.double()), B.double())
    assert_accurate(lowrank_linear(x, A, B), exact, F.linear(F.linear(x, A), B))
    permutation = torch.randperm(2000)
    z, y = F.linear(x, A), torch.empty(rows, 2000).bfloat16()
    y[:, permutation] = torch.cat([z, F.linear(z, C)], -1)
    exact, z = torch.empty(rows, 2000).double(), F.linear(x.double(), A.double())
    exact[:, permutation] = torch.cat([z, F.linear(z, C.double())], -1)
    assert_accurate(lowrank_linear_pivoted(x, A, C, permutation), exact, y)


@pytest.mark.parametrize("isa", library.ISAS)
def test_every_instruction_set(isa):
    """What an older processor would run, in every kernel. The choice is made once a process."""
    if isa not in library.available():
        pytest.skip(f"this processor has no {isa}")
    code = (
        "import torch, torch.nn.functional as F, sieve_kernels as k\n"
        "from sieve_kernels.core import dispatch, library as compiled\n"
        "from sieve_kernels.lowrank import cpp_backend\n"
        f"assert compiled.isa() == {isa!r} and {isa!r} in compiled.status()\n"
        "many = [300] if compiled.has_amx() else []\n"
        "for dtype, allowed in ((torch.bfloat16, 1e-2), (torch.float32, 1e-6)):\n"
        "    for rows, n in ((1, 83), (2, 5), (2, 64), (1, 1), *((rows, 83) for rows in many)):\n"
        "        x, A, B = (torch.randn(s).to(dtype) for s in ((rows, n), (21, n), (45, 21)))\n"
        "        exact = F.linear(F.linear(x.double(), A.double()), B.double())\n"
        "        serve = cpp_backend.linear if rows < 9 or dtype == torch.bfloat16 else k.lowrank_linear\n"
        "        error = (serve(x, A, B, None).double() - exact).norm() / exact.norm()\n"
        "        assert error < allowed, (dtype, rows, n, error)\n"
        "    x, weight = torch.randn(40, 83).to(dtype), torch.rand(83).to(dtype)\n"
        "    norm = F.rms_norm(x.double(), (83,), weight.double(), 1e-6)\n"
        "    assert (k.rms_norm(x, weight, 1e-6).double() - norm).norm() < allowed * norm.norm()\n"
        "    gram = x.double().T @ x.double()\n"
        "    assert (k.gram_(torch.zeros(83, 83), x).double() - gram).norm() < 1e-6 * gram.norm()\n"
        "assert ('cpp' in dispatch.explain('gram_', x)) == compiled.has_avx512()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {library.VARIABLE: isa})


@pytest.mark.skipif(library.library() is None, reason="the C++ library is not compiled")
@pytest.mark.parametrize("rows", [1, 2, 3, 4])
@pytest.mark.parametrize("largest", [1, 30, 300, 3000])
def test_8_bit_factors_of_inputs_with_outliers(rows, largest):
    """One channel that is large and matters little: what the others hold must not be lost in fixed point."""
    x, A, B = torch.randn(rows, 576), torch.randn(208, 576) / 24, torch.randn(300, 208) / 14
    x[:, 5] *= largest
    A[:, 5] *= 0.01 / largest
    tensors = [x.bfloat16(), *quantize_rows(A, 8), *quantize_rows(B, 8), None]
    exact = reference.quantized(tensors[0].double(), *tensors[1:])
    error, torchs = (
        ((f(*tensors).double() - exact).norm() / exact.norm()).item()
        for f in (cpp_backend.quantized, torch_backend.quantized)
    )
    assert error <= 2 * torchs


@pytest.mark.skipif("avx512" not in library.available(), reason="this processor has no AVX-512")
def test_gram_matrices_without_amx():
    """Few and many channels, whole and cut panels, several chunks of tokens; masked tokens that hold NaN; the lower
    triangle, which is not read; the same bits for any number of threads."""
    code = (
        "import torch, sieve_kernels as k\n"
        "torch.manual_seed(0)\n"
        "for n, T in ((1, 1), (17, 3), (48, 128), (83, 300), (800, 1100)):\n"
        "    for dtype in (torch.float32, torch.bfloat16):\n"
        "        wide = torch.randn(T, n + 5).to(dtype)\n"
        "        x, kept = wide[:, 2 : n + 2], torch.rand(T) < 0.7\n"
        "        start = torch.randn(n, n)\n"
        "        start = start + start.T\n"
        "        exact = start.double() + x.double().T @ x.double()\n"
        "        found = []\n"
        "        for threads in (1, 2, 3):\n"
        "            torch.set_num_threads(threads)\n"
        "            out = torch.where(torch.ones(n, n).triu().bool(), start, torch.nan)\n"
        "            found.append(k.gram_(out, x))\n"
        "        assert all(torch.equal(found[0], other) for other in found[1:])\n"
        "        assert torch.equal(found[0], found[0].T)\n"
        "        assert (found[0].double() - exact).norm() < 1e-6 * exact.norm(), (n, T, dtype)\n"
        "        x[~kept] = torch.nan\n"
        "        out = k.gram_(torch.zeros(n, n + 3)[:, 1 : n + 1], x, kept)\n"
        "        exact = x[kept].double().T @ x[kept].double()\n"
        "        assert (out.double() - exact).norm() <= 1e-6 * exact.norm(), (n, T, dtype)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {library.VARIABLE: "avx512"})


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ("avx3", "SIEVE_KERNELS_ISA=avx3 is not one of none, portable, avx2, avx512, avx512bf16, amx"),
        ("amx", "SIEVE_KERNELS_ISA=amx: this processor runs portable, avx2 only"),
    ],
)
def test_an_instruction_set_that_there_is_not(wanted, words, monkeypatch):
    monkeypatch.setenv(library.VARIABLE, wanted)
    monkeypatch.setattr(library.ctypes, "CDLL", lambda path: SimpleNamespace(sieve_widest_isa=lambda: 1))
    with pytest.raises(SettingError, match=words):
        library._load.__wrapped__()


def test_a_library_of_another_version(monkeypatch):
    monkeypatch.setattr(library.ctypes, "CDLL", lambda path: SimpleNamespace())
    loaded, why = library._load.__wrapped__()
    assert loaded is None
    assert "reinstall" in why


def test_an_openmp_that_torch_keeps_to_itself():
    """As torch's wheel for arm64 does: the library finds the runtime, and no second one is loaded."""
    code = (
        "import ctypes\n"
        "everything = ctypes.CDLL\n"
        "class Hidden(everything):\n"
        "    def __init__(self, name, mode=0, **named):\n"
        "        super().__init__(name, mode=ctypes.RTLD_LOCAL, **named)\n"
        "ctypes.CDLL = Hidden\n"
        "import torch\n"
        "ctypes.CDLL = everything\n"
        "assert not hasattr(ctypes.CDLL(None), 'omp_get_max_threads'), 'nothing is hidden'\n"
        "def runtimes():\n"
        "    names = (line.split()[-1] for line in open('/proc/self/maps'))\n"
        "    return {name for name in names if name.rpartition('/')[2].startswith(('libgomp', 'libomp', 'libiomp'))}\n"
        "before = runtimes()\n"
        "from sieve_kernels.core import library\n"
        "assert library.library() is not None, library.status()\n"
        "assert runtimes() == before and before\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# Many rows of float32 are torch's, whose sums depend on threads.
@pytest.mark.parametrize(("dtype", "sizes"), [(torch.bfloat16, (1, 7, 40)), (torch.float32, (1, 7))])
def test_same_bits_for_any_number_of_threads(dtype, sizes):
    """Of every compiled operator, on operands that several threads share."""
    x, A, B, C = make((40, 512), (200, 512), (900, 200), (700, 200), dtype=dtype)
    permutation, mask, angles = torch.randperm(900), torch.rand(40) < 0.7, torch.randn(1, 40, 64).to(dtype)
    heads = torch.randn(1, 8, 40, 64).to(dtype)
    weight, many = torch.rand(512).to(dtype), torch.randn(3000, 512).to(dtype)
    ranks = torch.tensor([200, 64, 7])

    def results(rows: int) -> list[torch.Tensor]:
        few = x[:rows]
        return [
            lowrank_linear(few, A, B),
            linear(few, A),
            *lowrank_linear_group(few, [A, A[:50]], [B, C[:, :50]]),
            lowrank_linear_pivoted(few, A, C, permutation),
            lowrank_swiglu(few, A, B, A, B),
            lowrank_linear_population(few[:2].expand(3, -1, -1), A, B, ranks),
            lowrank_linear_quantized(few, *quantize_rows(A, 8), *quantize_rows(B, 8)),
            rms_norm(few, weight, 1e-6),
            *rotary(heads[:, :, :rows], heads[:, :2, :rows], angles[:, :rows], angles[:, :rows]),
            *channel_sums(few, mask[:rows]),
        ]

    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append([y for rows in sizes for y in results(rows)])
            found[-1] += [rms_norm(many, weight, 1e-6), *channel_sums(many, None)]
            if library.has_avx512():
                found[-1] += [gram_(torch.zeros(512, 512), many)]
            if library.has_amx():
                found[-1] += [cross_gram_(torch.zeros(512, 512), many, many)]
    finally:
        torch.set_num_threads(before)
    for others in found[1:]:
        assert all(torch.equal(one, other) for one, other in zip(found[0], others, strict=True))


def test_helpers_of_a_passive_openmp():
    """Calls in quick succession, which helpers join as they wake; from two threads at once; after a fork."""
    code = (
        "import os, threading, time, torch, sieve_kernels as k\n"
        "from sieve_kernels.lowrank import cpp_backend\n"
        "torch.set_num_threads(3)\n"
        "pairs = [[torch.randn(s).bfloat16() for s in ((r, 500), (900, r))] for r in (3, 100, 300)]\n"
        "x = torch.randn(1, 500).bfloat16()\n"
        "first = [cpp_backend.linear(x, *pair, None) for pair in pairs]\n"
        "def again():\n"
        "    for turn in range(300):\n"
        "        for pair, y in zip(pairs, first):\n"
        "            assert torch.equal(cpp_backend.linear(x, *pair, None), y)\n"
        "        time.sleep(0.002 * (turn % 50 == 0))\n"
        "again()\n"
        "threads = [threading.Thread(target=again) for _ in range(2)]\n"
        "[thread.start() for thread in threads]\n"
        "[thread.join() for thread in threads]\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    again()\n"
        "    os._exit(0)\n"
        "assert os.waitpid(child, 0)[1] == 0\n"
    )
    environment = os.environ | {"OMP_WAIT_POLICY": "PASSIVE"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, timeout=100)


@pytest.mark.parametrize("activation", ["silu", "gelu", "gelu_tanh", "relu"])
@pytest.mark.parametrize("rows", [1, 50])
def test_activations_at_their_ends(activation, rows):
    """Gates far from zero: where exponentials end, the activation is 0 or the gate itself."""
    gates = torch.tensor([-1e4, -90.0, -20.0, -3.0, -1e-3, 0.0, 1e-3, 3.0, 20.0, 90.0, 1e4])
    x = torch.ones(rows, 1).bfloat16()
    one, B = torch.ones(1, 1).bfloat16(), gates[:, None].bfloat16()
    y = lowrank_swiglu(x, one, B, one, torch.ones_like(B), activation)
    functions = {"silu": F.silu, "gelu": F.gelu, "gelu_tanh": lambda v: F.gelu(v, approximate="tanh"), "relu": F.relu}
    torch.testing.assert_close(y[0].double(), functions[activation](B[:, 0].double()), rtol=1e-2, atol=1e-6)


def test_nothing_to_sum():
    bias = torch.randn(4)
    x, As, Bs = torch.empty(3, 0), [torch.empty(2, 0)] * 2, [torch.ones(4, 2)] * 2
    assert torch.equal(lowrank_linear(x, As[0], Bs[0], bias), bias.expand(3, 4))
    assert all(y.count_nonzero() == 0 for y in lowrank_linear_group(x, As, Bs))


@pytest.mark.parametrize("off", ["switched off", "not built"])
def test_without_the_library(off):
    """A package that could not be compiled works, and says what is missing; so does one whose library is not wanted."""
    code = (
        "import torch, sieve_kernels as k\n"
        "from sieve_kernels.core import library, dispatch\n"
        f"if {off!r} == 'not built': library._BUILT /= 'nowhere'\n"
        "print(k.lowrank_linear(torch.ones(3, 2), torch.ones(1, 2), torch.ones(4, 1)).sum().item())\n"
        "print(library.isa(), library.available(), library.status())\n"
        "print(dispatch.explain('gram_', torch.ones(3, 2)))\n"
    )
    environment = os.environ | {library.VARIABLE: "none" if off == "switched off" else ""}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    out = done.stdout.splitlines()
    assert out[0] == "24.0"
    assert out[1].startswith("none ('none',) the compiled CPU kernels")
    assert ("SIEVE_KERNELS_ISA=none" if off == "switched off" else "install a C++ compiler") in out[1]
    assert "torch" in out[2]


def test_explain_names_it():
    assert "cpp (compiled kernel" in dispatch.explain("lowrank_linear", torch.ones(1, 8), rank=2)
