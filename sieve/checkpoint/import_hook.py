"""Making transformers know `quant_method: sieve`, without importing transformers.

Transformers' table of quantizers takes seconds to import, and `import sieve` should not. So where the table is not
loaded yet, a finder on `sys.meta_path` waits for it and registers ours right after it has run. Whoever loads a model
imports that table anyway.
"""

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

_TABLE = "transformers.quantizers.auto"
_OURS = "sieve.checkpoint.hf_quantizer"


def register() -> None:
    """Register now if transformers' quantizers are loaded, else as soon as they are. Calling it again is harmless."""
    if _TABLE in sys.modules:
        importlib.import_module(_OURS)
    elif not any(isinstance(finder, _Waiting) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Waiting())


class _Waiting(MetaPathFinder):
    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != _TABLE:
            return None
        sys.meta_path.remove(self)
        spec = PathFinder.find_spec(name, path, target)
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def execute_and_register(module: ModuleType) -> None:
            execute(module)
            importlib.import_module(_OURS)

        spec.loader.exec_module = execute_and_register
        return spec
