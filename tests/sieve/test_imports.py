"""Imports point one way: a room of `sieve` knows those before it, and no module is needed by one that it needs."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import sieve

ROOT = Path(sieve.__file__).parent
ORDER = (
    "errors",
    "utils",
    "registry",
    "tasks",
    "nn",
    "models",
    "evaluation",
    "calibration",
    "checkpoint",
    "compression",
    "healing",
    "searchers",
    "run",
    "commands",
    "cli",
    "__main__",
)
"""From what all may use to what nothing may use."""
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(ROOT.rglob("*.py"))
}


def imported(tree: ast.AST, known=MODULES) -> set[str]:
    """The modules of `sieve` that this code imports, at its head or later; not those for type checkers alone."""
    found = set()
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "sieve":
            room = node.module.partition(".")[2]
            for alias in node.names:
                whole = f"{room}.{alias.name}".strip(".")
                found.add(whole if whole in known else room)
        elif isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[2] for alias in node.names if alias.name.startswith("sieve.")}
        else:
            found |= imported(node, known)
    return found - {"", "__version__"}


IMPORTS = {name: imported(ast.parse(path.read_text())) for name, path in MODULES.items()}


def test_every_room_has_its_place_in_the_order():
    rooms = {name.partition(".")[0] for name in MODULES} - {"__init__"}
    assert rooms == set(ORDER)
    assert len(list(ROOT.glob("*.py"))) <= 6


@pytest.mark.parametrize("room", ORDER)
def test_no_room_imports_a_later_one(room):
    place = ORDER.index(room)
    upward = [
        f"{name} imports {other}"
        for name, others in IMPORTS.items()
        if name.partition(".")[0] == room
        for other in others
        if ORDER.index(other.partition(".")[0]) > place
    ]
    assert upward == []


def test_no_module_imports_itself_through_others():
    done: set[str] = set()

    def follow(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " → ".join((*path[path.index(name) :], name))
        if name not in done:
            for other in sorted(IMPORTS.get(name, ())):
                follow(other, (*path, name))
            done.add(name)

    for name in MODULES:
        follow(name, ())


def test_an_upward_import_shows():
    tree = ast.parse(
        "def f():\n    from sieve.run import recipe\nimport sieve.cli\nfrom sieve.run.recipe import Recipe"
    )
    assert imported(tree) == {"run.recipe", "cli"}


def test_the_kernels_know_nothing_of_the_driver():
    kernels = ROOT.parent / "sieve_kernels"
    for path in kernels.rglob("*.py"):
        assert imported(ast.parse(path.read_text())) == set(), path


@pytest.mark.parametrize("statement", ["import sieve", "from sieve.cli import app"])
def test_what_is_quick_to_import_leaves_torch_alone(statement):
    code = (
        f"import sys; {statement}; print([name for name in ('torch', 'transformers', 'scipy') if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


@pytest.mark.parametrize("module", ["sieve.checkpoint.hf_quantizer", "sieve.checkpoint.adapters"])
def test_what_waits_for_another_library_can_be_imported_first(module):
    subprocess.run([sys.executable, "-c", f"import {module}"], check=True, capture_output=True)
