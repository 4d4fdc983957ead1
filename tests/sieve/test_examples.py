"""The examples run as they stand."""

import runpy
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_prune(world, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["prune.py", world.model, world.task, str(tmp_path / "out"), "0.9"])
    runpy.run_path(str(EXAMPLES / "prune.py"), run_name="__main__")
    out, err = capsys.readouterr()
    assert "test accuracy: " in out
    assert "the dense model" in err  # progress
    assert (tmp_path / "out" / "config.json").is_file()


def test_own_fitness(world, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["own_fitness.py", world.model, world.task])
    runpy.run_path(str(EXAMPLES / "own_fitness.py"), run_name="__main__")
    assert "of the prunable parameters removed" in capsys.readouterr().out


def test_own_layer(capsys):
    runpy.run_path(str(EXAMPLES / "own_layer.py"), run_name="__main__")
    errors = [float(line.rsplit(" ", 1)[1]) for line in capsys.readouterr().out.splitlines()]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.1
