"""A small world for end-to-end tests: a tiny random model's folder and a task with data."""

import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from sieve.evaluation import speed
from sieve_kernels.core import decisions, dispatch
from tests.tiny_models import tiny_model, tiny_tokenizer

ANIMALS = ["ant", "bee", "cat", "dog", "eel", "fox", "gnu", "hen"]
ROWS = [{"number": i, "animal": ANIMALS[i % 8], "label": (i * i // 3) % 2} for i in range(160)]
TASK = """\
name: legs
type: multiple_choice
data: legs.jsonl
prompt: "Word {number}: {animal}. Legs:"
choices: [" few", " many"]
answer: label
"""


@pytest.fixture(scope="session", autouse=True)
def quick():
    """What hundreds of tests would wait for and none of them asks: whole rounds of the measured speed, and the disk.

    A killed process loses nothing that it wrote. Tests of a disk that is full bring their own `fsync`.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(speed, "_ROUNDS", 1)
        patch.setattr(speed, "NEW", 4)
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(autouse=True)
def as_users_have_it(monkeypatch):
    """Layers on a CPU by the compiled library and torch. The interpreter of Triton, which is on for the kernels' tests,
    would take products of 16 bits."""
    monkeypatch.setattr(dispatch, "INTERPRETED", False)
    decisions.forget()
    yield
    decisions.forget()


@pytest.fixture(scope="session")
def world(tmp_path_factory) -> SimpleNamespace:
    """`model`: folder of a tiny Llama; `task`: task file with 160 examples; both as text."""
    folder = tmp_path_factory.mktemp("world")
    tiny_model("llama").save_pretrained(folder / "model")
    tiny_tokenizer().save_pretrained(folder / "model")
    write_task(folder / "legs.yaml", TASK, ROWS)
    return SimpleNamespace(model=str(folder / "model"), task=str(folder / "legs.yaml"))


def write_task(path: Path, text: str, rows: list[dict]) -> str:
    path.write_text(text)
    (path.parent / "legs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)
