"""Tasks: examples → prompts → scores, described by small YAML files. See docs/tasks.md."""

from sieve.tasks.encoding import encode
from sieve.tasks.example import Example
from sieve.tasks.general import general_text
from sieve.tasks.task import Task, builtin_tasks, load_task

__all__ = ["Example", "Task", "builtin_tasks", "encode", "general_text", "load_task"]
