"""A search that an earlier version began is resumed: its journal names the same identity."""

from dataclasses import dataclass

from sieve.searchers.config import Options
from sieve.searchers.engine.config import EngineConfig
from sieve.searchers.identity import options_identity, task_identity
from sieve.tasks import Task, load_task

FIRST_OPTIONS = {
    "objective": "parameters", "kept": None, "granularity": "matrix", "paper": False, "population": None,
    "offspring": None, "generations": None, "budget": None, "layers": True, "racing": True, "surrogate": True,
    "memory": 2**31, "bottlenecks": 16, "workers": False,
}  # fmt: skip
FIRST_OF_TASKS = [
    "type", "prompt", "choices", "answer", "normalize", "shots", "split_sizes", "chat", "truncate", "metric",
    "normalise", "max_new_tokens", "stop", "answer_is", "group",
]  # fmt: skip


@dataclass(frozen=True)
class Later(Options):
    """With an option that the first version does not know."""

    depth: int = 3


def test_options():
    usual = EngineConfig()
    assert options_identity(Options(), usual) == options_identity(Later(), usual) == FIRST_OPTIONS
    assert options_identity(Later(depth=4), usual) == FIRST_OPTIONS | {"depth": 4}
    few, many = (options_identity(Options(), EngineConfig(workers=workers)) for workers in (2, "ray://x:1"))
    assert few == many == FIRST_OPTIONS | {"workers": True}


def test_tasks():
    assert list(task_identity(load_task("geography"))) == FIRST_OF_TASKS  # the order counts: a hash is made of it
    chat = Task("chat", type="generation", data=[{"turns": []}], messages="turns")
    assert task_identity(chat)["messages"] == "turns"
