"""`--rounds`: ever smaller, as long as the healed model keeps the tolerance; what is stored is the last that did."""

import json

import pytest
import torch

import sieve
from sieve.compression.low_rank.expand import at_most, expand_
from sieve.compression.plan import Plan
from sieve.healing import loop
from sieve.models.linears import prunable
from tests.sieve.conftest import ROWS, TASK, write_task
from tests.sieve.test_cli import options, own_cache, run  # noqa: F401 (fixtures)
from tests.tiny_models import tiny_pruned, tiny_tokens


@pytest.fixture(scope="module")
def near(tmp_path_factory):
    folder = tmp_path_factory.mktemp("near")
    return write_task(folder / "legs.yaml", TASK.replace('[" few", " many"]', '[" few", " fog"]'), ROWS)


def command(world, near, output, *more, tolerance=0.9, rounds=3):
    given = [*options(world, output, tolerance)]
    given[given.index(world.task)] = near
    given[given.index("--rank-multiple") + 1] = 1
    return [*given, "--search", "uniform", "--heal", "--heal-steps", 3, "--rounds", rounds, *more, "--json"]


@pytest.mark.parametrize("more", [("--kept", 0.6), ("--kept", 0.6, "--shared-input")])
def test_each_round_is_smaller_and_the_last_that_held_is_stored(run, world, near, tmp_path, more):  # noqa: F811
    code, out, err = run(*command(world, near, tmp_path / "out", *more))
    assert code == 0, err
    report = json.loads(out)
    rounds = report["rounds"]
    assert [one["round"] for one in rounds] == [1, 2, 3]
    assert all(one["held"] for one in rounds)
    removed = [one["prunable_removed"] for one in rounds]
    kept = [1 - share for share in removed]
    assert kept[1] == pytest.approx(0.75 * kept[0], abs=0.03)
    assert kept[2] == pytest.approx(0.75 * kept[1], abs=0.03)
    assert report["parameters"]["prunable_removed"] == pytest.approx(removed[2])
    model, _ = sieve.load(tmp_path / "out", device="cpu")
    assert sum(one.numel() for one in model.parameters()) == report["parameters"]["model"]["pruned"]
    found = json.loads(run("eval", tmp_path / "out", "--json")[1])
    assert found["accuracy"] == report["accuracy"]["pruned"]["test"]
    assert found["loglik"] == report["loglik"]["pruned"]["test"]
    for measure in ("accuracy", "loglik"):
        after = {split: report[measure]["pruned"][split] for split in ("fitness", "validation")}
        assert rounds[2]["after"][measure] == after
    assert not list(tmp_path.glob("*.unfinished"))
    assert "Round 3" in run("info", tmp_path / "out")[1]


def test_bottlenecks_are_tested_in_the_first_round_alone(run, world, near, tmp_path):  # noqa: F811
    given = list(command(world, near, tmp_path / "out", "--kept", 0.6, "--bottlenecks", 2, rounds=2))
    given[given.index("uniform")] = "budget"
    code, out, err = run(*given)
    assert code == 0, err
    assert len(json.loads(out)["rounds"]) == 2
    assert err.count("matrices lose one level each") == 1


def test_after_a_failed_round_sizes_between_are_tried(run, world, near, tmp_path, monkeypatch):  # noqa: F811
    from sieve.run import rounds as module

    verdicts = iter([True, True, False, True, False])
    monkeypatch.setattr(module, "within", lambda *given: next(verdicts))
    code, out, err = run(*command(world, near, tmp_path / "out", "--kept", 0.9, rounds=5))
    assert code == 0, err
    report = json.loads(out)
    assert [one["held"] for one in report["rounds"]] == [True, True, False, True, False]
    kept = [1 - one["prunable_removed"] for one in report["rounds"]]
    assert kept[2] == pytest.approx(0.75 * kept[1], abs=0.03)
    assert kept[2] < kept[4] < kept[3] < kept[1], kept
    assert report["parameters"]["prunable_removed"] == report["rounds"][3]["prunable_removed"]
    model, _ = sieve.load(tmp_path / "out", device="cpu")
    assert sum(one.numel() for one in model.parameters()) == report["parameters"]["model"]["pruned"]


def test_a_round_is_judged_by_both_splits_together(run, world, near, tmp_path, monkeypatch):  # noqa: F811
    from sieve.run import rounds as module

    asked = []
    within = module.within
    monkeypatch.setattr(module, "within", lambda *given: asked.append(given[:2]) or within(*given))
    code, out, err = run(*command(world, near, tmp_path / "out", "--kept", 0.6, rounds=2))
    assert code == 0, err
    accuracy = json.loads(out)["accuracy"]
    for number, which in enumerate(("pruned", "dense")):
        parts = [accuracy[which][split] for split in ("fitness", "validation")]
        want = sum(one["n"] * one["value"] for one in parts) / sum(one["n"] for one in parts)
        assert asked[-1][number].accuracy == pytest.approx(want)


def test_no_round_is_smaller_than_any_plan(run, world, near, tmp_path):  # noqa: F811
    given = [*command(world, near, tmp_path / "out", "--kept", 0.25, rounds=4)]
    given[given.index("--rank-multiple") + 1] = 4
    code, out, err = run(*given)
    assert code == 0, err
    assert "no further round" in err
    assert len(json.loads(out)["rounds"]) < 4


def test_an_interrupted_round_goes_on_to_the_same_model(run, world, near, tmp_path, monkeypatch):  # noqa: F811
    code, out, err = run(*command(world, near, tmp_path / "whole", "--kept", 0.6))
    assert code == 0, err
    want, step, taken = json.loads(out), loop._step, []

    def killed(*args):
        taken.append(1)
        if len(taken) == len(want["healing"]["tries"]) + 9:
            raise KeyboardInterrupt
        return step(*args)

    monkeypatch.setattr("sieve.healing.checkpoint.SECONDS", 0.0)
    monkeypatch.setattr(loop, "_step", killed)
    code, _, err = run(*command(world, near, tmp_path / "out", "--kept", 0.6))
    assert code == 130, err
    monkeypatch.setattr(loop, "_step", lambda *args: taken.append(2) or step(*args))
    code, out, err = run("prune", "--resume", tmp_path / "out", "--json")
    assert code == 0, err
    got = json.loads(out)
    assert [{**one, "seconds": 0} for one in got["rounds"]] == [{**one, "seconds": 0} for one in want["rounds"]]
    assert got["accuracy"] == want["accuracy"]
    assert got["loglik"] == want["loglik"]
    one, other = (sieve.load(tmp_path / name, device="cpu")[0].state_dict() for name in ("out", "whole"))
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    assert not list(tmp_path.glob("*.unfinished"))


@pytest.mark.parametrize("pivoted", [False, True])
@pytest.mark.parametrize("name", ["llama", "gpt2", "opt"])
def test_pairs_multiplied_out_are_the_same_map(name, pivoted):
    model = tiny_pruned(name, pivoted=pivoted)
    ids = tiny_tokens()
    with torch.no_grad():
        before = model(ids).logits
        ranks = expand_(model)
        after = model(ids).logits
    assert torch.allclose(before, after, atol=1e-3)
    assert ranks
    assert getattr(model.config, "quantization_config", None) is None
    assert set(ranks) <= set(prunable(model))


def test_no_matrix_is_given_more_than_it_had():
    plan = at_most(Plan({"a": 9, "b": "dense", "c": 3}, pivoted=True), {"a": 5, "b": 4, "c": 7, "d": 2})
    assert plan == {"a": 5, "b": 4, "c": 3, "d": 2}
    assert plan.pivoted


@pytest.mark.parametrize(
    ("given", "message"),
    [(("--rounds", 2), "--rounds 2 needs --heal"), (("--heal", "--rounds", 0), "--rounds must be at least 1"),
     (("--heal", "--rounds", 2, "--method", "wanda"), "--rounds is for pairs only")],
)  # fmt: skip
def test_rounds_that_cannot_be(run, world, tmp_path, given, message):  # noqa: F811
    code, _, err = run(*options(world, tmp_path / "out"), *given)
    assert code == 2
    assert message in err
