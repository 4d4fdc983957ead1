"""Distributions: what a wheel holds, and that it runs in an environment that has nothing else of the checkout."""

import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROJECTS = {"sieve-pruning": ".", "sieve-kernels": "sieve_kernels", "sieve-vllm": "packages/sieve-vllm"}

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")


def read(project):
    return tomllib.loads((ROOT / PROJECTS[project] / "pyproject.toml").read_text())


def test_versions_are_one():
    assert len({read(project)["project"]["version"] for project in PROJECTS}) == 1


def test_the_kernels_alone_are_the_same_as_in_the_whole():
    whole, alone = read("sieve-pruning")["tool"]["setuptools"], read("sieve-kernels")["tool"]["setuptools"]
    (theirs,), (ours,) = whole["ext-modules"], alone["ext-modules"]
    shortened = {
        key: [one.removeprefix("sieve_kernels/") for one in value] if key in ("sources", "depends") else value
        for key, value in theirs.items()
    }
    assert ours == shortened
    assert alone["package-data"]["sieve_kernels"] == whole["package-data"]["sieve_kernels"]
    folders = {path.parent.relative_to(ROOT) for path in (ROOT / "sieve_kernels").rglob("*.py")}
    assert set(alone["packages"]) == {".".join(folder.parts) for folder in folders}


def test_the_library_asks_for_nothing_of_the_machine_that_builds_it():
    for project in ("sieve-pruning", "sieve-kernels"):
        (library,) = read(project)["tool"]["setuptools"]["ext-modules"]
        assert not [flag for flag in library["extra-compile-args"] if flag.startswith(("-march", "-mtune", "-m"))]
        assert "extra-link-args" not in library  # OpenMP is torch's


def copy(project, folder):
    """What is tracked, as a clone has it: nothing that was built."""
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, names.split("\0")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes((ROOT / name).read_bytes())
    return folder / PROJECTS[project]


def build(what, source, output):
    """By setuptools itself, without an environment of its own: nothing is downloaded."""
    output.mkdir()
    code = f"import sys; from setuptools import build_meta; print(build_meta.build_{what}(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", code, str(output)], cwd=source, check=True, capture_output=True)
    return next(output.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("project", ["sieve-pruning", "sieve-kernels"])
def test_a_wheel_built_of_the_source_distribution_runs_alone(project, tmp_path):
    import shutil

    sdist = build("sdist", copy(project, tmp_path / "clone"), tmp_path / "sdist")
    shutil.unpack_archive(sdist, tmp_path / "unpacked")
    wheel = build("wheel", next((tmp_path / "unpacked").iterdir()), tmp_path / "wheel")
    platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
    assert wheel.name == f"{project.replace('-', '_')}-0.1.0-py3-none-{platform}.whl"
    names = zipfile.ZipFile(wheel).namelist()
    (library,) = [name for name in names if name.endswith(".so")]
    assert b"libgomp" not in zipfile.ZipFile(wheel).read(library)
    assert any(name.startswith("sieve/") for name in names) == (project == "sieve-pruning")
    assert not [name for name in names if name.startswith(("tests/", "bench/", "packages/"))]
    assert "sieve_kernels/setup.py" not in names

    # Other packages are those of this environment; of Sieve there is the wheel alone.
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "venv")], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    place = Path(subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip())
    zipfile.ZipFile(wheel).extractall(place)
    (place / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    script = f"""
import torch, sieve_kernels
from sieve_kernels.core.library import library, status
assert sieve_kernels.__file__.startswith({str(place)!r}), sieve_kernels.__file__
assert library() is not None, status()
x, C = torch.randn(8, 16), torch.zeros(16, 16)
sieve_kernels.gram_(C, x)
torch.testing.assert_close(C, x.T @ x)
"""
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    run = {"cwd": tmp_path, "env": environment, "check": True, "capture_output": True, "text": True}
    subprocess.run([python, "-c", script], **run)
    if project == "sieve-pruning":
        told = subprocess.run([python, "-m", "sieve", "tasks"], **run).stdout
        assert "geography" in told
