"""What the command line says and leaves behind where a run fails."""

import subprocess
import sys

import pytest
from safetensors.torch import load_file, save_file

from sieve import cli
from tests.sieve.test_cli import options, own_cache, run  # noqa: F401 - fixtures


@pytest.mark.parametrize(("tensor", "words"), [("up_proj", "layers.1.mlp.up_proj"), ("embed_tokens", "embed_tokens")])
def test_nan_in_weights_names_the_tensor(run, world, tmp_path, tensor, words):  # noqa: F811
    broken = tmp_path / "broken"
    subprocess.run(["cp", "-r", world.model, broken], check=True)
    weights = load_file(broken / "model.safetensors")
    name = next(name for name in reversed(weights) if tensor in name and ("layers" not in name or "layers.1" in name))
    weights[name][0, 0] = float("nan")
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    code, _, err = run("prune", broken, "--task", world.task, "--output", tmp_path / "x", "--quiet")
    assert code == 3
    assert words in err


@pytest.mark.parametrize("stage", ["sieve.run.pipeline.compressed", "sieve.checkpoint.folder.model_card"])
@pytest.mark.parametrize("search", ["uniform", "budget"])
def test_ctrl_c_leaves_nothing_but_a_journal(run, world, tmp_path, monkeypatch, stage, search):  # noqa: F811
    """Between stages, and in the middle of writing the result."""

    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(stage, interrupt)
    output = tmp_path / "place" / "pruned"
    code, _, err = run(*options(world, output), "--quiet", "--search", search)
    assert code == 130
    assert "sieve: interrupted: " in err
    assert "Traceback" not in err
    searched = "model_card" in stage
    assert [path.name for path in tmp_path.glob("place/*")] == ["pruned.unfinished"] * searched


def test_full_disk_while_saving(run, world, tmp_path, monkeypatch):  # noqa: F811
    import errno
    import os

    from sieve.utils import files

    def full(path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    assert run("calibrate", world.model, "--task", world.task, "--output", tmp_path / "s.safetensors")[0] == 0
    monkeypatch.setattr(files, "_sync", full)
    output = tmp_path / "place" / "pruned"
    code, _, err = run(*options(world, output)[:-4], "--rank-multiple", 4, "--statistics", tmp_path / "s.safetensors",
                       "--search", "uniform", "--quiet")  # fmt: skip
    assert code == 4
    assert "No space left" in err
    assert not list(tmp_path.glob("place/*"))


def test_unexpected_errors_have_no_traceback_unless_asked(run, world, tmp_path, monkeypatch):  # noqa: F811
    def broken(*arguments, **options):
        raise RuntimeError("surprise")

    monkeypatch.setattr("sieve.run.pipeline.compressed", broken)
    code, _, err = run(*options(world, tmp_path / "x"), "--quiet")
    assert (code, "surprise" in err, "SIEVE_TRACEBACK" in err) == (1, True, True)
    monkeypatch.setenv("SIEVE_TRACEBACK", "1")
    monkeypatch.setattr(sys, "argv", ["sieve", *map(str, options(world, tmp_path / "x")), "--quiet"])
    with pytest.raises(RuntimeError, match="surprise"):
        cli.main()
