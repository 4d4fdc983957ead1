"""Making transformers know `quant_method: sieve`, and peft pruned matrices, without importing either.

Transformers' table of quantizers takes seconds to import, and `import sieve` should not. So where the table is not
loaded yet, a finder on `sys.meta_path` waits for it and registers ours right after it has run. Loading a model
imports that table anyway. So it is with peft.
"""

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

_OURS = {
    "transformers.quantizers.auto": "sieve.checkpoint.hf_quantizer",
    "peft": "sieve.checkpoint.adapters",
}
"""What is waited for → our module, which registers as it is imported, or has a function `register`."""


def register() -> None:
    """Register now what is loaded, and the rest as soon as it is. Calling it again is harmless."""
    for theirs in _OURS:
        if theirs in sys.modules:
            _register(theirs)
        elif not any(isinstance(finder, _Waiting) and finder.name == theirs for finder in sys.meta_path):
            sys.meta_path.insert(0, _Waiting(theirs))


def _register(theirs: str) -> None:
    # A program may import our module first, which imports theirs: then it is not complete yet, and registers itself.
    then = getattr(importlib.import_module(_OURS[theirs]), "register", None)
    if then is not None:
        then()


class _Waiting(MetaPathFinder):
    def __init__(self, name: str):
        self.name = name

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != self.name:
            return None
        sys.meta_path.remove(self)
        spec = PathFinder.find_spec(name, path, target)
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def execute_and_register(module: ModuleType) -> None:
            execute(module)
            _register(name)

        spec.loader.exec_module = execute_and_register
        return spec
