"""The comparison of methods on a tiny model: every kind of contender, resumed, as tables, and what it measures."""

import json

import numpy as np
import pytest
import torch

import sieve
from bench.cells import Results
from bench.methods import __main__ as command
from bench.methods import contenders, cross, grid, setting, shown, shrinkage
from bench.methods.contenders import masking, projection, refitted, shared, shared_refitted, structured, trained
from sieve.compression.plan import Plan
from sieve.compression.structured.depth import drop_blocks_
from sieve.evaluation.scoring import evaluate
from sieve.tasks import Task, load_task

SMALL = {
    "output_aligned": projection("output_aligned"),
    "svd": projection("svd"),
    "svd_llm": projection("svd_llm"),
    "output_aligned, refit": refitted("output_aligned", "output_aligned"),
    "loss_aware": projection("loss_aware"),
    "loss_aware, refit": refitted("loss_aware", "loss_aware"),
    "output_aligned, shrunk": projection("output_aligned", shrinkage="auto"),
    "output_aligned, shared, refit": shared_refitted("output_aligned, shared", "output_aligned"),
    "depth": structured(drop_blocks_),
    "llm_sieve_sgd": trained(kept=(0.5,), tokens=1000),
    "magnitude": masking("magnitude"),
    "wanda general": masking("wanda", "general"),
    "wanda task": masking("wanda", "task"),
    "wanda concatenated": masking("wanda", "task", "general", fusion="concatenate"),
    "wanda fused": masking("wanda", "task", "general"),
}


@pytest.fixture
def small(world, tmp_path, monkeypatch):
    """A grid of few cells over the tiny world; returns the command's options."""
    rows = [{"text": f"word {i} and word {i * 7 % 11}, then {i * 5 % 13}"} for i in range(60)]
    text = Task("general", "perplexity", rows, "{text}")
    monkeypatch.setattr(setting, "MULTIPLE", 1)
    for module in (grid, setting):
        monkeypatch.setattr(module, "general_text", lambda: text)
    everything = SMALL | {"output_aligned, shared": shared("output_aligned")}
    monkeypatch.setattr(contenders, "CONTENDERS", everything)
    monkeypatch.setattr(grid, "CONTENDERS", everything)
    monkeypatch.setattr(grid, "PARTS", ((SMALL, (world.task,), (0,), (0.5, 0.8)),))
    monkeypatch.setattr(shown, "MAIN", (world.task,))
    monkeypatch.setattr(shown, "DOCS", tmp_path / "results.md")
    monkeypatch.setattr(cross, "SOURCES", ("dense", world.task))
    monkeypatch.setattr(cross, "TARGETS", (world.task,))
    return ["--folder", str(tmp_path), "--cache", str(tmp_path / "cache"), "--model", world.model, "--tokens", "600"]


def test_grid(small, world, tmp_path, capsys):
    command.main(["run", *small])
    rows = [json.loads(line) for line in (tmp_path / "methods.jsonl").read_text().splitlines()]
    assert len(rows) == 1 + 2 * (len(SMALL) - 1) + 1  # dense, two sizes each, one of what is slow
    by_cell = {(row["contender"], row["kept"]): row for row in rows}
    for (name, kept), row in by_cell.items():
        assert 0 < row["perplexity"] < np.inf
        assert len(row["scores"]["right"]) == len(row["scores"]["loglik"])
        if name != grid.DENSE_CELL:
            assert row["kept_exactly"] < 1
            whole = name in ("depth", "output_aligned, shared, refit")  # another model, not a plan for this one
            assert name == "depth" or kept <= row["kept_exactly"]
            assert (row["output_error"] is None) == whole
            assert whole or 0 < row["output_error"] < 2
            assert row["build"]["cpu_seconds"] > 0
            assert len(row["calibration"]) == len(SMALL[name].data if SMALL[name].calibration else ())
    for kept in (0.5, 0.8):  # the optimum of all maps of these ranks, to the rounding of its sums
        best = by_cell["output_aligned", kept]["output_error"]
        assert best < by_cell["svd", kept]["output_error"]
        assert best == pytest.approx(by_cell["svd_llm", kept]["output_error"], rel=1e-2)
    assert by_cell["wanda fused", 0.5]["loglik"] != by_cell["wanda task", 0.5]["loglik"]
    before = (tmp_path / "methods.jsonl").read_text()
    command.main(["run", *small])
    assert (tmp_path / "methods.jsonl").read_text() == before

    command.main(["cross", *small])
    command.main(["plot", *small])
    assert all((tmp_path / name).read_bytes().startswith(b"\x89PNG") for name in ("methods.png", "cross.png"))
    capsys.readouterr()
    command.main(["table", *small])
    assert "| `output_aligned` |" in (printed := capsys.readouterr().out)
    command.main(["docs", *small])
    assert printed.strip() in (tmp_path / "results.md").read_text()


def test_output_error_is_that_of_the_outputs(world):
    """Against inputs run through both models, layer by layer."""
    model, tokenizer = sieve.load_model(world.model)
    task = load_task(world.task)
    statistics = sieve.calibrate(model, tokenizer, task, 600, method="svd_llm")
    factors = sieve.project(model, statistics, "svd")
    plan = Plan.uniform(setting.prunable(model).values(), 0.5)
    inputs: dict[str, list[torch.Tensor]] = {name: [] for name in plan}
    handles = [
        model.get_submodule(name).register_forward_pre_hook(
            lambda layer, args, seen=seen: seen.append(args[0].flatten(0, -2))
        )
        for name, seen in inputs.items()
    ]
    from sieve.calibration.text import batches

    with torch.no_grad():
        for text in statistics.samples:
            (batch,) = batches([text], 4096)
            model(input_ids=batch.ids)
    for handle in handles:
        handle.remove()
    errors = []
    for name, rank in plan.items():
        x, W = torch.cat(inputs[name]).double(), model.get_submodule(name).weight.detach().double()
        A, B = (factor.double() for factor in factors[name].slice(rank))
        errors.append(float((x @ (W - B @ A).T).square().sum() / (x @ W.T).square().sum()))
    dense = {name: model.get_submodule(name).weight.detach() for name in plan}
    with factors.elastic(model) as elastic:
        elastic.set_plan(plan)
        found = grid.output_error(model, statistics, dense, plan)
    assert found == pytest.approx(np.mean(errors), rel=1e-3)


def test_likelihood_is_a_distribution(world):
    """Over the choices of a question the probabilities add up to one, and they go with the log-likelihoods."""
    model, tokenizer = sieve.load_model(world.model)
    task = load_task(world.task)
    examples = task.splits()["test"][:8]
    fitness = cross.likelihood(tokenizer, task)
    from dataclasses import replace

    elastic = [replace(example, answer=1 - example.answer) for example in examples]
    np.testing.assert_allclose(np.add(fitness(model, examples), fitness(model, elastic)), 1, atol=1e-6)
    right = evaluate(model, tokenizer, task, examples).score
    np.testing.assert_array_equal(np.array(fitness(model, examples)) > 0.5, right > 0)


def test_where_a_curve_reaches_a_value():
    curve = [(0.4, -2.0), (0.6, -1.0), (0.8, -0.5)]
    assert shown._kept_at(curve, -1.5) == pytest.approx(0.5)
    assert shown._kept_at(curve, -0.75) == pytest.approx(0.7)
    assert shown._kept_at(curve, -3) is None
    assert shown._kept_at(curve, 0) is None
    assert [shown._fewer(curve, 0.9, value) for value in (-1.0, -3, 0)] == ["1.50", "> 2.25", "–"]


def test_the_grid_names_every_cell_once():
    cells = [tuple(cell.values()) for cell in grid.cells()]
    dense = [cell for cell in cells if cell[0] == grid.DENSE_CELL]
    others = [cell for cell in cells if cell[0] != grid.DENSE_CELL]
    assert len(set(others)) == len(others)
    assert {cell[1:3] for cell in others} == {cell[1:3] for cell in dense}
    assert {cell[0] for cell in others} == set(contenders.CONTENDERS) - set(contenders.BEGUN)
    assert len(Results("nowhere.jsonl", grid.KEY)) == 0


def test_shrinkage_has_a_row_for_each_share(tmp_path):
    rows = Results(tmp_path / "rows.jsonl", shrinkage.KEY)
    assert shown._shrinkage(rows) == ""
    common = {"task": "geography", "kept": 0.5, "method": "output_aligned", "tokens": 4096, "prior": "diagonal"}
    numbers = {"error_calibration": 0.02, "error_new": 0.03, "loglik": -5, "gain": 0.1, "gain_standard_error": 0.05}
    for auto in (False, True):
        rows.add(common | numbers | {"share": 0.03, "auto": auto})
    lines = shown._shrinkage(rows).splitlines()[-2:]
    assert [line.split(" | ")[3] for line in lines] == ["0.03", "auto: 0.03"]
    assert all("+0.100 ± 0.050" in line for line in lines)
