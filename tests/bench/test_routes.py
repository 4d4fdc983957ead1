"""The table of routes: what a route's result is judged as, and that a refusal must be the right one."""

import json
import subprocess
import sys

import pytest

from bench import routes
from bench.route_list import ROUTES, Route

ASKED = Route("asked", lambda folder: {}, tolerance=1e-3)
REFUSED = Route("refused", lambda folder: {}, refuses="no file named")


@pytest.mark.parametrize(
    ("route", "found", "cells"),
    [
        (ASKED, {"scores": [[1.0, 2.0]], "wanted": [[1.0, 2.0005]]}, ("yes", "yes, ± 0.0005", "–", True)),
        (ASKED, {"scores": [[1.0, 2.0]], "wanted": [[1.0, 3.0]]}, ("yes", "**no**, ± 1", "–", False)),
        (ASKED, {"failed": "KeyError: 'x'"}, ("**no**", "–", "KeyError: 'x'", False)),
        (ASKED, {"refused": "no"}, ("no", "–", "**not clear**: no", False)),
        (REFUSED, {"refused": "Error no file named x"}, ("no", "–", "yes: “no file named”", True)),
        (REFUSED, {"refused": "division by zero"}, ("no", "–", "**not clear**: division by zero", False)),
        # What should be refused and loads is wrong, whatever its scores are.
        (REFUSED, {"scores": [[1.0]], "wanted": [[1.0]]}, ("yes", "**no**, ± 0", "–", False)),
    ],
)
def test_results_are_judged(route, found, cells):
    assert routes.judged(route, found) == cells


def test_a_route_that_fails_or_lacks_a_package_is_said(monkeypatch, capsys, tmp_path):
    lacking = Route("lacking", lambda folder: {}, needs=("no_such_package",))
    monkeypatch.setattr(routes, "ROUTES", (ASKED, lacking))
    monkeypatch.setattr(routes, "tried", lambda route, folder: {"failed": "broken"})
    assert routes.table(tmp_path, None) is False
    told = capsys.readouterr().out
    assert "| asked | **no** | – | broken |" in told
    assert "| lacking | not tried here: needs no_such_package | | |" in told
    assert "unproven" in told
    monkeypatch.setattr(routes, "tried", lambda route, folder: {"scores": [[1.0]], "wanted": [[1.0]]})
    assert routes.table(tmp_path, "ask") is True
    assert "lacking" not in capsys.readouterr().out


def test_sieve_is_hidden_from_routes_without_it():
    code = "import sys; from bench.routes import _Hidden; sys.meta_path.insert(0, _Hidden())\nimport sieve"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=routes.ROOT)
    assert done.returncode == 1
    assert "No module named 'sieve'" in done.stderr


def test_a_route_runs_in_a_process_of_its_own(tmp_path):
    """The one that needs nothing but known scores."""
    (tmp_path / "scores.json").write_text(json.dumps([[0.5, 0.25]]))
    first = ROUTES[0]
    assert routes.tried(first, tmp_path) == {"scores": [[0.5, 0.25]], "wanted": [[0.5, 0.25]]}


def test_names_are_one_each():
    assert len({route.name for route in ROUTES}) == len(ROUTES)
