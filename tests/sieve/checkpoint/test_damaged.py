"""Folders with damaged files: one line and an exit code that says so, from every command that reads them."""

import json
import shutil
import sys
from pathlib import Path

import pytest

import sieve
from sieve import cli

TEXTS = ["", "{}", "[]", "null", "1", '"text"', "[" * 100_000, '{"a": ', "\x00\x01", '{"version": {}}', "- x\n- y"]
WEIGHTS = "sieve.safetensors"


@pytest.fixture(scope="module")
def pruned(world, tmp_path_factory):
    """What `sieve prune` makes, without checksums: those would be the first to speak."""
    output = tmp_path_factory.mktemp("damaged") / "pruned"
    sieve.prune(sieve.Recipe(world.model, world.task, tolerance=0.9, search="uniform", rank_multiple=4), output)
    (output / "checksums.json").unlink()
    return output


@pytest.fixture
def copy(pruned, tmp_path):
    return Path(shutil.copytree(pruned, tmp_path / "copy"))


@pytest.fixture
def run(monkeypatch, capsys):
    def call(*arguments) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["sieve", *map(str, arguments), *(["--quiet"] if "eval" in arguments else [])])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        return stop.value.code or 0, capsys.readouterr().err

    return call


def refused(code: int, err: str) -> bool:
    lines = [line for line in err.splitlines() if line.startswith("sieve:")]
    return code in (2, 4) and len(lines) == 1 and len(lines[0]) < 700 and "Traceback" not in err


def damaged_reports(report: dict) -> list[str]:
    """Other files, and the report with each of its fields gone or of another kind, at the first two levels."""
    found = list(TEXTS)
    for key in ("parameters", "bytes", "accuracy", "difference", "resolution", "search", "seconds", "kept"):
        found.append(json.dumps({name: value for name, value in report.items() if name != key}))
        found += [json.dumps(report | {key: value}) for value in (None, [], "x", {"a": "b"})]
    found += [json.dumps(report | {"bytes": {"dense": 0, "pruned": 1}}), json.dumps(report | {"tolerance": "x"})]
    return found


def test_reports(copy, run):
    file = copy / "report.json"
    report = json.loads(file.read_text())
    assert run("info", copy, "--matrices")[0] == 0
    for text in damaged_reports(report):
        file.write_text(text)
        for command in (("info", copy, "--json"), ("info", copy, "--matrices")):
            code, err = run(*command)
            assert refused(code, err), (text[:80], command, code, err[-300:])
            assert "report.json" in err
    file.write_bytes(b"\xff\xfe\x00")
    assert refused(*run("info", copy))


@pytest.mark.parametrize("name", ["recipe.yaml", "report.json", "config.json", "tokenizer.json", WEIGHTS])
def test_eval(copy, run, name):
    """A damaged report or recipe is refused, too, or not needed."""
    assert (copy / name).is_file()
    for text in TEXTS:
        (copy / name).write_text(text)
        code, err = run("eval", copy)
        assert code == 0 or refused(code, err), (text[:80], code, err[-300:])
        assert code != 0 or name in ("recipe.yaml", "report.json"), text[:80]


@pytest.mark.slow
@pytest.mark.parametrize("value", [None, 1, "x", [], {}, {"a": 1}, [[]], {"model.embed_tokens": 4}, True, 1e400])
def test_quantization_config(copy, run, value):
    """Every field, and the whole, of every wrong kind."""
    config = json.loads((copy / "config.json").read_text())
    fields = config["quantization_config"]
    first = {"quant_method": "sieve", "version": 1, "ranks": {}}
    of_version_1 = ("ranks", "masks", "pattern", "shared", "biased", "pivoted")
    name, layer = next(iter(fields["layers"].items()))
    changed = {None: value}
    changed |= {key: fields | {key: value} for key in ("layers", "stacks", "version", "quant_method", "unknown")}
    changed |= {f"1 {key}": first | {key: value} for key in of_version_1}
    changed |= {f"layer {key}": fields | {"layers": {name: layer | {key: value}}} for key in (*layer, "members", "x")}
    changed["layer"] = fields | {"layers": {name: value}}
    for key, new in changed.items():
        if new == fields:
            continue
        (copy / "config.json").write_text(json.dumps(config | {"quantization_config": new}))
        code, err = run("eval", copy)
        assert code == 0 or refused(code, err), (key, value, code, err[-300:])
