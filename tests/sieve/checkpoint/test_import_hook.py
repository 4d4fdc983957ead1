"""The hook that has transformers know pruned models: nothing spends it, and an installed Sieve sets it by itself."""

import importlib
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch
import transformers.quantizers

from sieve.checkpoint import import_hook
from tests.tiny_models import tiny_pruned, tiny_tokens

REPOSITORY = Path(__file__).parents[3]
KNOWN = "from transformers.quantizers import auto; assert auto.AUTO_QUANTIZER_MAPPING['sieve']"


def python(code: str, interpreter: str | Path = sys.executable, folder: Path | None = None, **environment: str) -> str:
    """What the code prints; it must not write to standard error."""
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    paths = {"PYTHONPATH": str(REPOSITORY)} if folder is None else {}
    done = subprocess.run(
        [interpreter, "-c", code], capture_output=True, text=True, env=inherited | paths | environment, cwd=folder
    )
    assert done.returncode == 0, done.stderr
    known = ("torchao", "_pytree", "Loading weights")
    assert [line for line in done.stderr.split("\n") if line and not any(word in line for word in known)] == []
    return done.stdout


@pytest.mark.parametrize(
    "before",
    [
        "from importlib.util import find_spec; assert find_spec('transformers.quantizers.auto').origin",
        "import sieve.checkpoint.folder, sieve.checkpoint.weight_files",
        *(
            pytest.param(before, marks=pytest.mark.slow)
            for before in (
                "from importlib.util import find_spec; find_spec('transformers.quantizers.auto').loader.get_source",
                "import sieve.checkpoint.import_hook as hook; hook.register(); hook.register()",
                "import threading; all = [threading.Thread(target=__import__, args=('transformers.quantizers.auto',)) "
                "for _ in range(4)]; [one.start() for one in all]; [one.join() for one in all]",
                "import transformers.quantizers.auto as auto, importlib; importlib.reload(auto)",
                "import transformers.quantizers.auto as auto, importlib, sys; del sys.modules[auto.__name__]",
            )
        ),
    ],
    ids=["look", "what saves", "look closely", "twice", "threads", "reload", "import anew"],
)
def test_nothing_spends_the_hook(before):
    python(f"import sieve; {before}; {KNOWN}")


@pytest.mark.slow
def test_what_is_loaded_already():
    python(f"import transformers.quantizers.auto; import sieve; {KNOWN}")


@pytest.mark.slow
def test_the_module_shows_its_own_loader():
    python(
        "import sieve, inspect, transformers.quantizers.auto as auto; assert 'AUTO' in inspect.getsource(auto); "
        "assert type(auto.__loader__) is type(auto.__spec__.loader) is type(inspect.__loader__)"
    )


def test_the_start_waits_for_what_the_hook_registers_with_and_goes_away_where_sieve_is_imported(monkeypatch):
    monkeypatch.setattr(sys, "meta_path", [one for one in sys.meta_path if type(one).__module__ != "sieve_start"])
    monkeypatch.delitem(sys.modules, "sieve_start", raising=False)
    # As in a new interpreter: neither of the libraries is there.
    for name in import_hook._OURS:
        monkeypatch.delitem(sys.modules, name, raising=False)
    start = importlib.import_module("sieve_start")
    assert set(start._WAITED_FOR) == set(import_hook._OURS)
    (starter,) = [one for one in sys.meta_path if type(one).__module__ == "sieve_start"]
    assert starter.find_spec("json") is None
    assert starter in sys.meta_path
    assert starter.find_spec("peft") is None  # the hook that `import sieve` has set was asked already
    assert starter not in sys.meta_path
    # Without that hook it sets one, and hands over to it.
    sys.meta_path = [one for one in sys.meta_path if not getattr(one, "waits_for_sieve", False)]
    assert starter.find_spec("transformers.quantizers.auto", transformers.quantizers.__path__).origin
    assert [one for one in sys.meta_path if getattr(one, "waits_for_sieve", False)]


def test_two_hooks_do_not_ask_each_other(monkeypatch):
    monkeypatch.setattr(sys, "meta_path", [import_hook._Waiting(), import_hook._Waiting(), *sys.meta_path])
    assert sys.meta_path[0].find_spec("transformers.quantizers.auto", transformers.quantizers.__path__).origin


def test_a_sieve_that_cannot_be_imported_keeps_nobody_from_transformers():
    python(
        "import warnings; warnings.simplefilter('ignore'); import sieve, sys; "
        "sys.modules['sieve.checkpoint.hf_quantizer'] = None; from transformers.quantizers import auto; "
        "assert 'sieve' not in auto.AUTO_QUANTIZER_MAPPING"
    )


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A copy of what is packaged."""
    folder = tmp_path_factory.mktemp("source") / "repository"
    names = ("sieve", "sieve_kernels", "sieve_start.py", "sieve_start.pth", "setup.py", "pyproject.toml", "README.md")
    names += ("LICENSE",)
    folder.mkdir()
    for name in names:
        path = REPOSITORY / name
        copy = shutil.copytree if path.is_dir() else shutil.copy
        copy(path, folder / name)
    return folder


@pytest.fixture
def environment(tmp_path):
    """A new environment without Sieve, which finds this one's packages: its interpreter, and its pip."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    interpreter = tmp_path / "venv" / "bin" / "python"
    place = Path(python("import sysconfig; print(sysconfig.get_path('purelib'))", interpreter, tmp_path).strip())
    (place / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")

    def pip(*arguments: str | Path) -> None:
        # No compiler: the C++ library is not needed here, and is optional.
        command = [interpreter, "-m", "pip", *arguments, "--quiet", "--disable-pip-version-check"]
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {
            "CC": "false",
            "CXX": "false",
        }
        done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
        assert done.returncode == 0, done.stderr

    return interpreter, place, pip


LOAD = """
import sys
assert not [name for name in sys.modules if name in ("sieve", "torch", "transformers", "numpy")]
import torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained({})
with torch.no_grad():
    torch.save(model(torch.load({})).logits, {})
"""


@pytest.mark.slow
@pytest.mark.parametrize("editable", [False, True])
def test_an_installed_sieve_needs_no_import(editable, source, environment, folder, tmp_path):
    """Plain transformers load a pruned folder; the start-up line outlives its package in silence."""
    interpreter, place, pip = environment
    pip("install", "--no-index", "--no-deps", "--no-build-isolation", *(["--editable"] if editable else []), source)
    assert (place / "sieve_start.pth").is_file()
    torch.save(tiny_tokens(), tmp_path / "tokens.pt")
    paths = (str(folder), str(tmp_path / "tokens.pt"), str(tmp_path / "logits.pt"))
    python(LOAD.format(*map(repr, paths)), interpreter, tmp_path)
    with torch.no_grad():
        expected = tiny_pruned("llama")(tiny_tokens()).logits
    # Up to rounding: this wheel has no C++ library.
    torch.testing.assert_close(torch.load(tmp_path / "logits.pt"), expected, rtol=1e-4, atol=1e-4)
    python(KNOWN, interpreter, tmp_path)
    # A mere look at the module does not spend what waits for it.
    look = "from importlib.util import find_spec; assert find_spec('transformers.quantizers.auto').origin"
    python(f"{look}; {look}; {KNOWN}", interpreter, tmp_path)
    count = "import sys; print(sum(type(one).__module__ == 'sieve_start' for one in sys.meta_path))"
    assert python(count, interpreter, tmp_path).strip() == "1"
    assert python(count, interpreter, tmp_path, SIEVE_START="off").strip() == "0"
    # Another's module of the name is left alone.
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "sieve.py").write_text("primes = [2, 3, 5]\n")
    assert python("import sieve; print(sieve.primes)", interpreter, tmp_path, PYTHONPATH=str(tmp_path / "own"))

    left = (place / "sieve_start.pth").read_text()
    if editable:
        source.rename(tmp_path / "moved")
        assert python("print(1)", interpreter, tmp_path) == "1\n"
        (tmp_path / "moved").rename(source)
    pip("uninstall", "--yes", "sieve-pruning")
    assert not (place / "sieve_start.pth").exists()
    (place / "sieve_start.pth").write_text(left)
    assert python("print(1)", interpreter, tmp_path) == "1\n"
