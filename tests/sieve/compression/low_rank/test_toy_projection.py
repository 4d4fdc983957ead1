"""A projection with an option of its own is two files: its row, and its function. All else follows from them."""

import importlib.util
import json
from types import MappingProxyType

import pytest
import torch
import typer
from typer.testing import CliRunner

import sieve
from sieve import registry
from sieve.calibration.collect import collect
from sieve.calibration.text import Sample, batches
from sieve.commands import methods, prune
from sieve.errors import InputError
from tests.sieve.test_cli import options, own_cache  # noqa: F401 - a fixture
from tests.tiny_models import tiny_model, tiny_tokens

TABLE = "tests.sieve.compression.low_rank.toy_projection.methods"
NAME = "model.layers.0.mlp.down_proj"


@pytest.fixture
def toy(monkeypatch):
    """The toy's row in the table of rows, for a while."""
    known = dict(registry.methods())
    monkeypatch.setattr(registry, "TABLES", (*registry.TABLES, TABLE))
    monkeypatch.setattr(registry, "_METHODS", known)
    row = importlib.import_module(TABLE).LEVELLED
    registry.register(row)
    return row


@pytest.fixture
def run(toy):
    """`sieve prune` and `sieve methods` as they are where the row was there from the start."""
    app = typer.Typer()
    for name, module in (("prune", prune), ("methods", methods)):
        spec = importlib.util.spec_from_file_location(f"anew_{name}", module.__file__)
        anew = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(anew)
        app.command(name)(getattr(anew, name))
    return lambda *arguments: CliRunner().invoke(app, list(map(str, arguments)))


def test_in_python(toy):
    model = tiny_model("llama")
    statistics = collect(model, batches([Sample(row.tolist(), 0) for row in tiny_tokens(8, 32)], 4096), "input")

    def map_of(method, **own):
        pair = sieve.project(model, statistics, method, **own)[NAME]
        return pair.B[:, :8].double() @ pair.A[:8].double()

    torch.testing.assert_close(map_of("levelled", levelling=0.0), map_of("output_aligned"), atol=1e-5, rtol=0)
    torch.testing.assert_close(map_of("levelled", levelling=1e6), map_of("svd"), atol=1e-4, rtol=0)
    assert torch.equal(map_of("levelled"), map_of("levelled", levelling=0.5))
    assert not torch.allclose(map_of("levelled"), map_of("svd"), atol=1e-3)
    with pytest.raises(InputError, match="--levelling must be at least 0, got -1"):
        sieve.project(model, statistics, "levelled", levelling=-1)
    with pytest.raises(InputError, match="levelled has no option noise: it has levelling"):
        sieve.project(model, statistics, "levelled", noise=1)
    with pytest.raises(InputError, match="svd has no option levelling: it has none of its own"):
        sieve.project(model, statistics, "svd", levelling=1)


def test_on_the_command_line(run, world, tmp_path):
    listed = json.loads(run("methods", "--json").stdout)
    assert listed["levelled"]["about"] == "least error of the outputs, of inputs with noise"
    assert "--levelling" in run("prune", "--help").stdout
    given = (*options(world, tmp_path / "out"), "--search", "uniform", "--quiet")
    done = run(*given, "--method", "levelled", "--levelling", 2, "--json")
    assert done.exit_code == 0, done.exception
    assert json.loads(done.stdout)["calibration"]["method"] == "levelled"
    recipe = sieve.Recipe.load(tmp_path / "out" / "recipe.yaml")
    assert (recipe.levelling, recipe.own_options()) == (2.0, {"levelling": 2.0})
    for wrong, words in (
        (("--levelling", 2), "--levelling is for the method levelled only: leave it out, or use --method levelled"),
        (("--method", "levelled", "--levelling", -1), "--levelling must be at least 0, got -1.0"),
    ):
        assert words in str(run(*given, *wrong).exception)


def test_without_the_row_nobody_knows_of_it():
    assert isinstance(registry.methods(), MappingProxyType)
    assert "levelled" not in registry.methods()
    with pytest.raises(InputError, match="unknown key 'levelling'"):
        sieve.Recipe.from_dict({"model": "m", "task": "t", "levelling": 1})
