"""`sieve prune` with masks, end to end, as a user meets it."""

import json

import pytest
import torch
from safetensors.torch import load_file

from tests.sieve.test_cli import options, own_cache, run  # noqa: F401 (fixtures)

TEXT = """\
type: perplexity
data: text.jsonl
prompt: "{text}"
"""


@pytest.fixture
def general(tmp_path):
    rows = [{"text": f"Some words about number {i} that nobody asked for."} for i in range(80)]
    (tmp_path / "text.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "text.yaml").write_text(TEXT)
    return tmp_path / "text.yaml"


@pytest.mark.parametrize("method", ["wanda", "sparsegpt", "ria"])
def test_task_aware_masks_end_to_end(run, world, tmp_path, general, method):  # noqa: F811
    output = tmp_path / "masked"
    arguments = (*options(world, output), "--method", method, "--task-aware", "--general", general)
    code, out, err = run(*arguments, "--json")
    assert code == 0, err
    report = json.loads(out)
    assert report["masks"]["pattern"] == "unstructured"
    assert report["masks"]["options"]["task_aware"] is True
    assert report["masks"]["general"] == {"text": str(general), "tokens": 1000}
    assert report["masks"]["runs_sparse"] is False
    assert report["calibration"]["method"] == method
    assert report["bytes"]["pruned"] == report["bytes"]["dense"]
    assert 0 < report["parameters"]["model_removed"] < report["parameters"]["prunable_removed"] < 1
    weights = load_file(output / "model.safetensors")
    config = json.loads((output / "config.json").read_text())["quantization_config"]
    zeros = 0
    for name, layer in config["layers"].items():
        kept = layer["kept"]
        weight = weights[f"{name}.weight"]
        assert report["kept"][name] == kept
        assert (weight != 0).float().mean().item() == pytest.approx(kept)
        zeros += int((weight == 0).sum())
    assert zeros == report["parameters"]["prunable"]["dense"] - report["parameters"]["prunable"]["pruned"]
    assert zeros == report["parameters"]["model"]["dense"] - report["parameters"]["model"]["pruned"]

    result = json.loads(run("eval", output, "--json")[1])
    assert result["accuracy"] == report["accuracy"]["pruned"]["test"]
    assert result["loglik"] == report["loglik"]["pruned"]["test"]
    shown = run("info", output)[1]
    assert "no bytes on disk" in shown
    assert "no time" in shown

    again = run(*(str(x).replace(str(output), str(tmp_path / "again")) for x in arguments))[2]
    assert again.count("reused") == 2  # both calibrations are in the cache
    other = load_file(tmp_path / "again" / "model.safetensors")
    assert all(torch.equal(weights[name], other[name]) for name in weights)


def test_a_pattern_has_one_level(run, world, tmp_path):  # noqa: F811
    output = tmp_path / "m"
    code, out, err = run(*options(world, output), "--method", "magnitude", "--pattern", "2:4", "--json")
    assert code == 0, err
    report = json.loads(out)
    assert set(report["kept"].values()) == {0.5}
    assert report["search"]["search"] == "uniform"
    assert report["search"]["candidates"] == 1  # the one level there is
    layers = json.loads((output / "config.json").read_text())["quantization_config"]["layers"]
    assert all(layer == {"format": "mask", "kept": 0.5, "pattern": "2:4"} for layer in layers.values())


def test_genetic_search_gives_every_matrix_its_own_sparsity(run, world, tmp_path):  # noqa: F811
    code, out, err = run(
        *options(world, tmp_path / "m", 0.3), "--method", "wanda", "--search", "ga", "--generations", 1,
        "--population", 4, "--offspring", 4, "--bottlenecks", 2, "--kept", 0.5, "--json",
    )  # fmt: skip
    assert code == 0, err
    report = json.loads(out)
    assert report["parameters"]["prunable_removed"] >= 0.5
    assert len(set(report["kept"].values())) > 1
    assert report["bottlenecks"] is not None
    assert not (tmp_path / "m.unfinished").exists()


def test_a_ramp_through_the_command_line(run, world, tmp_path):  # noqa: F811
    code, out, err = run(*options(world, tmp_path / "m"), "--method", "wanda", "--ramp", 0.2, "--kept", 0.5, "--json")
    assert code == 0, err
    kept = set(json.loads(out)["kept"].values())
    assert max(kept) - min(kept) > 0.15


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("--pattern", "2:4"), "--pattern is for masks only"),
        (("--task-aware",), "--task-aware is for masks only"),
        (("--method", "wanda", "--pattern", "1:3"), "2:4"),
        (("--method", "magnitude", "--task-aware"), "looks at no data"),
        (("--method", "wanda", "--search", "budget"), "predicted loss"),
        (("--method", "wanda", "--objective", "bytes"), "masks leave bytes"),
        (("--method", "wanda", "--pattern", "2:4", "--kept", 0.4), "smallest keeps 50.0%"),
        (("--method", "wanda", "--task-aware", "--general", "geography"), "must be of type perplexity"),
        (("--method", "wanda", "--task-aware", "--tau", 2), "--tau"),
    ],
)
def test_bad_options_are_one_line_with_a_fix(run, world, tmp_path, change, words):  # noqa: F811
    code, out, err = run(*options(world, tmp_path / "masked"), "--quiet", *change)
    assert (code, out) == (2, "")
    assert words in err
    assert err.count("\n") == 1
    assert not list(tmp_path.glob("*masked*"))
