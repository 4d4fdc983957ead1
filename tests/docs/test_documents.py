"""Documents say what is true of the code: commands and options exist, and Python blocks name what there is, or run."""

import ast
import doctest
import re
import shlex
import sys
from pathlib import Path

import pytest
import torch
import yaml
from typer.main import get_command

import sieve
from sieve.cli import app

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs").glob("*.md"))
DOCUMENTS = [*PAGES, ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", flags=re.M | re.S)


def blocks(language):
    return [
        pytest.param(match[2], id=f"{path.name}-{index}")
        for path in DOCUMENTS
        for index, match in enumerate(BLOCK.finditer(path.read_text(encoding="utf-8")))
        if match[1] == language
    ]


def command_lines():
    lines = {
        (path.name, line.strip())
        for path in DOCUMENTS
        for match in BLOCK.finditer(path.read_text(encoding="utf-8"))
        if match[1] in ("", "sh", "bash", "console")
        for line in match[2].replace("\\\n", " ").splitlines()
        if re.match(r"sieve [a-z]", line.strip())
    }
    return sorted(lines)


@pytest.mark.parametrize(("document", "line"), command_lines())
def test_commands_and_options_exist(document, line):
    commands = get_command(app).commands
    _, name, *words = shlex.split(line, comments=True)
    assert name in commands, f"{document}: there is no sieve {name}"
    known = {option for parameter in commands[name].params for option in (*parameter.opts, *parameter.secondary_opts)}
    options = {word.partition("=")[0] for word in words if word.startswith("--")}
    assert options <= known | {"--help"}, f"{document}: {line}"


@pytest.mark.parametrize("code", blocks("python"))
def test_python_names_what_there_is(code):
    code = doctest.script_from_examples(code) if code.startswith(">>>") else code
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "sieve":
            assert getattr(sieve, node.attr) is not None
        if isinstance(node, ast.ImportFrom) and node.module.partition(".")[0] in ("sieve", "sieve_kernels"):
            module = __import__(node.module, fromlist=["_"])
            assert all(hasattr(module, one.name) for one in node.names)


@pytest.mark.parametrize("code", blocks("yaml"))
def test_yaml_is_yaml(code):
    assert yaml.safe_load(code)


def test_the_adapters_page_runs(tmp_path, monkeypatch):
    peft = pytest.importorskip("peft")
    from tests.tiny_models import tiny_pruned, tiny_tokenizer

    monkeypatch.chdir(tmp_path)
    sieve.save(tiny_pruned("llama", pivoted=True), tiny_tokenizer(), "runs/mine")
    (match,) = [m for m in BLOCK.finditer((ROOT / "docs/adapters.md").read_text(encoding="utf-8")) if m[1] == "python"]
    names: dict = {}
    exec(match[2], names)
    assert isinstance(names["adapted"], peft.PeftModel)
    assert torch.isfinite(names["adapted"](torch.tensor([[3, 4]])).logits).all()


class Tags(yaml.SafeLoader):
    """mkdocs' own tags name Python objects, which are not looked up."""


Tags.add_multi_constructor("tag:yaml.org,2002:python/", lambda loader, suffix, node: suffix)


def test_every_page_has_its_place_and_every_place_a_page():
    def leaves(value):
        if isinstance(value, str):
            yield value
        else:
            for one in value.values() if isinstance(value, dict) else value:
                yield from leaves(one)

    nav = yaml.load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"), Tags)["nav"]
    assert sorted(leaves(nav)) == [path.name for path in PAGES]


def test_links_lead_to_files():
    link = re.compile(r"\]\((?!https?:|mailto:|#|…)([^)#\s]+)(?:#[^)]*)?\)")
    lost = [
        f"{path.name}: {target}"
        for path in DOCUMENTS
        for target in link.findall(BLOCK.sub("", path.read_text(encoding="utf-8")))
        if not (path.parent / target).exists()
    ]
    assert lost == []


@pytest.mark.slow
def test_the_site_builds_strictly(tmp_path):
    """Links, anchors and the API's docstrings; needs the extra `docs`."""
    import subprocess

    pytest.importorskip("mkdocs")
    pytest.importorskip("mkdocstrings")
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "lora_targets" in (tmp_path / "site" / "api" / "index.html").read_text(encoding="utf-8")
