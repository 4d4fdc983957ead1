"""The C++ library for a processor without x86's instructions: it compiles, by a cross compiler, where there is one."""

import shutil
import subprocess

import pytest

from tests.packaging.test_distributions import PROJECTS, ROOT, read

COMPILER = shutil.which("aarch64-linux-gnu-g++")
AARCH64 = 183


@pytest.mark.slow
@pytest.mark.skipif(COMPILER is None, reason="needs g++-aarch64-linux-gnu")
def test_the_library_compiles_for_arm64(tmp_path):
    (library,) = read("sieve-kernels")["tool"]["setuptools"]["ext-modules"]
    sources = [ROOT / PROJECTS["sieve-kernels"] / source for source in library["sources"]]
    output = tmp_path / "library.so"
    # As setuptools does: what OpenMP needs is left to the runtime that torch has loaded.
    command = [COMPILER, "-shared", "-fPIC", *library["extra-compile-args"]]
    done = subprocess.run([*command, *sources, "-o", output, "-nodefaultlibs"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    header = output.read_bytes()[:20]
    assert header[:4] == b"\x7fELF"
    assert int.from_bytes(header[18:20], "little") == AARCH64
    assert b"sieve_widest_isa" in output.read_bytes()
