"""`sieve prune --heal` and `sieve heal DIR`: one result, said in the report, checked before the long work."""

import json
from pathlib import Path

import pytest
import torch
import yaml

import sieve
from sieve.searchers.problem import SearchProblem
from tests.sieve.conftest import ROWS, TASK, write_task
from tests.sieve.test_cli import options, own_cache, run  # noqa: F401 (fixtures)


@pytest.fixture(scope="module")
def near(tmp_path_factory):
    """A task on which a tiny random model is torn between choices: there is something to heal."""
    folder = tmp_path_factory.mktemp("near")
    return write_task(folder / "legs.yaml", TASK.replace('[" few", " many"]', '[" few", " fog"]'), ROWS)


def pruned(run, world, near, output, *more):  # noqa: F811
    given = [*options(world, output)]
    given[given.index(world.task)] = near
    code, out, err = run(*given, "--search", "uniform", "--kept", 0.4, *more, "--json")
    assert code == 0, err
    return json.loads(out)


def test_healed_in_one_go_and_afterwards_is_the_same_model(run, world, near, tmp_path):  # noqa: F811
    before = pruned(run, world, near, tmp_path / "pruned")
    report = pruned(run, world, near, tmp_path / "healed", "--heal", "--heal-steps", 10)
    code, out, err = run("heal", tmp_path / "pruned", "--output", tmp_path / "later", "--heal-steps", 10, "--json")
    assert code == 0, err
    later = json.loads(out)
    for made in (report, later):
        healing = made["healing"]
        assert healing["kind"] == "label-free"
        assert healing["held_back"]["after"] < healing["held_back"]["before"]
        assert healing["before"] == {measure: before[measure]["pruned"] for measure in ("accuracy", "loglik")}
        assert 0 <= healing["ngrams_taught"]["test"] <= 1
        assert made["accuracy"]["dense"] == before["accuracy"]["dense"]
        assert made["loglik"]["pruned"]["test"] != before["loglik"]["pruned"]["test"]
        assert made["parameters"] == before["parameters"]
        assert made["seconds"]["heal"] > 0
    assert "healing" not in before
    for measure in ("accuracy", "loglik", "difference"):
        assert later[measure] == report[measure]
    for folder in ("healed", "later"):
        found = json.loads(run("eval", tmp_path / folder, "--json")[1])
        assert found["accuracy"] == report["accuracy"]["pruned"]["test"]
        assert found["loglik"] == report["loglik"]["pruned"]["test"]
        assert yaml.safe_load((tmp_path / folder / "recipe.yaml").read_text())["heal"] == "label-free"
    for shown in (run("info", tmp_path / "later")[1], (tmp_path / "later" / "README.md").read_text()):
        assert "label-free" in shown
        assert f"{report['healing']['held_back']['after']:.3f}" in shown


def half_at_most(problem, candidate):
    """Leaves something to prune in a second round, though a model at chance is within every tolerance."""
    return candidate.plan.prunable_removed(problem.matrices) < 0.5


@pytest.mark.parametrize("rounds", [1, 2])
def test_healing_that_breaks_the_tolerance_is_undone(run, world, near, tmp_path, monkeypatch, rounds):  # noqa: F811
    """Also where the next round, which begins from the model as it was, does not keep the tolerance."""
    monkeypatch.setattr(SearchProblem, "accepts", half_at_most)
    monkeypatch.setattr("sieve.run.rounds.keeps_tolerance", lambda *given: given[2] is given[1].pruned)
    asked = []
    monkeypatch.setattr("sieve.run.pipeline.keeps_tolerance", lambda *given: asked.append(given[2]))
    given = [*options(world, tmp_path / "pruned"), "--search", "uniform"]
    given[given.index(world.task)] = near
    given[given.index("--rank-multiple") + 1] = 1
    made = [run(*given, "--json")]
    given[given.index(tmp_path / "pruned")] = tmp_path / "healed"
    made += [run(*given, "--heal", "--heal-steps", 10, "--rounds", rounds, "--json")]
    assert all(code == 0 for code, _, _ in made), made
    (before, report), note = (json.loads(out) for _, out, _ in made), made[1][2]
    assert "it stays as it was" in note
    assert [set(scores) for scores in asked] == [{"fitness", "validation"}]
    assert report["healing"]["undone"]
    assert [one["held"] for one in report.get("rounds", [])] == [True, False][: rounds if rounds > 1 else 0]
    for measure in ("accuracy", "loglik", "difference", "parameters", "kept"):
        assert report[measure] == before[measure]
    one, other = (sieve.load(tmp_path / name, device="cpu")[0].state_dict() for name in ("pruned", "healed"))
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    assert "Healing is undone" in run("info", tmp_path / "healed")[1]


def test_rounds_go_on_from_a_model_whose_healing_was_undone(run, world, near, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr(SearchProblem, "accepts", half_at_most)
    monkeypatch.setattr("sieve.run.pipeline.keeps_tolerance", lambda *given: False)
    given = [*options(world, tmp_path / "out"), "--search", "uniform", "--heal", "--heal-steps", 10, "--rounds", 2]
    given[given.index(world.task)] = near
    given[given.index("--rank-multiple") + 1] = 1
    code, out, err = run(*given, "--json")
    assert code == 0, err
    report = json.loads(out)
    first, second = report["rounds"]
    assert first["steps"] == 0
    assert second["prunable_removed"] > first["prunable_removed"]
    assert report["parameters"]["prunable_removed"] == second["prunable_removed"]
    assert "undone" not in report["healing"]
    found = json.loads(run("eval", tmp_path / "out", "--json")[1])
    assert found["accuracy"] == report["accuracy"]["pruned"]["test"]


def test_rows_too_few_are_refused_before_the_long_work(run, world, tmp_path):  # noqa: F811
    few = "splits: {calibration: 20, fitness: 40, validation: 40, test: 40}\n"
    task = write_task(tmp_path / "legs.yaml", f"{TASK}{few}", ROWS)
    given = [*options(world, tmp_path / "out")]
    given[given.index(world.task)] = task
    code, out, err = run(*given, "--heal")
    assert (code, out) == (2, "")
    assert "healing needs at least 32 calibration rows" in err.splitlines()[-1]
    assert "dense\n" not in err
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize("given", [("--heal-steps", 5), ("--heal", "--heal-steps", 0)])
def test_steps_without_healing(run, world, tmp_path, given):  # noqa: F811
    code, _, err = run(*options(world, tmp_path / "out"), *given)
    assert code == 2
    assert "--heal-steps must be at least 1" in err or "--heal-steps 5 needs --heal" in err


def test_what_cannot_be_healed(run, world, near, tmp_path):  # noqa: F811
    output = tmp_path / "out"
    code, _, err = run("heal", world.model, "--output", output)
    assert code == 2
    assert "no report.json" in err
    pruned(run, world, near, tmp_path / "pruned")
    other = tmp_path / "other.jsonl"
    other.write_text("".join(json.dumps({**row, "number": row["number"] + 1}) + "\n" for row in ROWS))
    code, _, err = run("heal", tmp_path / "pruned", "--output", output, "--data", other)
    assert code == 2
    assert "the task's data is not what" in err
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").write_text("x")
    code, _, err = run("heal", tmp_path / "pruned", "--output", tmp_path / "there")
    assert code == 2
    code, _, err = run("heal", tmp_path / "pruned", "--output", output, "--heal-steps", 0)
    assert code == 2
    assert "steps of healing must be" in err
    assert not Path(output).exists()


def test_tuned_stands_beside_the_tuned_dense_model(run, world, near, tmp_path):  # noqa: F811
    report = pruned(run, world, near, tmp_path / "tuned", "--heal", "tuned", "--heal-steps", 10)
    pruned(run, world, near, tmp_path / "pruned")
    code, out, err = run("heal", tmp_path / "pruned", "--output", tmp_path / "later", "--heal-steps", 10,
                         "--kind", "tuned", "--json")  # fmt: skip
    assert code == 0, err
    later = json.loads(out)
    for made in (report, later):
        assert made["healing"]["kind"] == "tuned"
        assert made["healing"]["ngrams_taught"] == {}
        beside = made["healing"]["tuned_dense"]
        difference = made["accuracy"]["pruned"]["test"]["value"] - beside["accuracy"]["test"]["value"]
        assert beside["difference"]["accuracy"]["test"]["value"] == pytest.approx(difference)
        assert beside["loglik"]["test"]["value"] != made["loglik"]["dense"]["test"]["value"]
    assert later["healing"]["tuned_dense"] == report["healing"]["tuned_dense"]
    assert later["accuracy"] == report["accuracy"]
    assert yaml.safe_load((tmp_path / "later" / "recipe.yaml").read_text())["heal"] == "tuned"
    shown = run("info", tmp_path / "later")[1]
    assert "Healed (tuned)" in shown
    assert "the dense model tuned likewise" in shown
    assert "towards the labels" in (tmp_path / "later" / "README.md").read_text()


@pytest.mark.parametrize("given", [("--heal", "tuned"), ("--heal", "lora"), ("--heal",)])
def test_heal_stands_alone_or_before_its_kind(given):
    from sieve.commands.help import with_bare_values

    kind = given[1] if given[1:] else "label-free"
    assert with_bare_values([*given, "--seed", "1"]) == ["--heal", kind, "--seed", "1"]
    assert with_bare_values(["--seed", "1", *given]) == ["--seed", "1", "--heal", kind]
    assert with_bare_values([*given, "smollm2"]) == ["--heal", kind, "smollm2"]
    assert with_bare_values(["--", *given]) == ["--", *given]


def test_an_interrupted_healing_goes_on_with_the_same_command(run, world, near, tmp_path, monkeypatch):  # noqa: F811
    from sieve.healing import loop

    pruned(run, world, near, tmp_path / "pruned")
    command = ("heal", tmp_path / "pruned", "--heal-steps", 10, "--json", "--output")
    want = json.loads(run(*command, tmp_path / "whole")[1])
    step, taken = loop._step, []

    def killed(*args):
        taken.append(1)
        if len(taken) == 8:
            raise KeyboardInterrupt
        return step(*args)

    monkeypatch.setattr("sieve.healing.checkpoint.SECONDS", 0.0)
    monkeypatch.setattr(loop, "_step", killed)
    code, _, err = run(*command, tmp_path / "out")
    assert code == 130, err
    left = tmp_path / "out.healing"
    assert left.is_dir()
    assert not (tmp_path / "out").exists()
    code, _, err = run("heal", tmp_path / "pruned", "--heal-steps", 9, "--output", tmp_path / "out")
    assert code == 2
    assert "an interrupted healing of something else" in err
    monkeypatch.setattr(loop, "_step", lambda *args: taken.append(2) or step(*args))
    code, out, err = run(*command, tmp_path / "out")
    assert code == 0, err
    got = json.loads(out)
    assert not left.exists()
    assert 0 < taken.count(2) < sum(one["steps"] for one in want["healing"]["tries"]) + 10
    for report in (want, got):
        report["healing"].pop("seconds"), report.pop("seconds")
    assert got == want


def test_what_is_in_the_way_of_a_healing(run, world, near, tmp_path):  # noqa: F811
    pruned(run, world, near, tmp_path / "pruned")
    (tmp_path / "out.healing").mkdir()
    (tmp_path / "out.healing" / "mine").write_text("x")
    code, _, err = run("heal", tmp_path / "pruned", "--output", tmp_path / "out")
    assert code == 2
    assert "is in the way" in err
    assert (tmp_path / "out.healing" / "mine").read_text() == "x"
    code, _, err = run("heal", tmp_path / "pruned", "--output", tmp_path / "other", "--kind", "glued")
    assert code == 2
    assert "one of label-free, tuned, lora" in err
