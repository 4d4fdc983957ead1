"""The code that a model brings (`trust_remote_code`), for processes that do not have it.

Transformers imports it as modules of `transformers_modules`, from a folder of the process that loaded the model.
"""

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import InspectLoader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_loader
from types import CodeType, ModuleType

_PACKAGE = "transformers_modules"
Sources = dict[str, tuple[str, bool]]  # module → its source, and whether it is a package


def brought_code() -> Sources:
    """All that models have brought into this process."""
    found: Sources = {}
    for name, module in sorted(sys.modules.items()):
        if name.partition(".")[0] != _PACKAGE or module.__spec__ is None:
            continue
        source = module.__spec__.loader.get_source(module.__spec__.name)
        found[name] = source or "", hasattr(module, "__path__")
        # Transformers imports a module without the packages above it.
        while name := name.rpartition(".")[0]:
            found.setdefault(name, ("", True))
    return found


def import_from(sources: Sources) -> None:
    """From now on such modules can be imported in this process, where they are not found otherwise."""
    if sources:
        sys.meta_path.append(_Brought(sources))
        importlib.invalidate_caches()


class _Brought(MetaPathFinder, InspectLoader):
    """Finds and runs modules whose sources are in memory: nothing is written that could stay behind."""

    def __init__(self, sources: Sources):
        self._sources = sources

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        return spec_from_loader(name, self, is_package=self.is_package(name)) if name in self._sources else None

    def is_package(self, name: str) -> bool:
        return self._sources[name][1]

    def get_source(self, name: str) -> str:
        return self._sources[name][0]

    def get_code(self, name: str) -> CodeType:
        # The name of a file: `inspect.getsource`, and so torch.jit.script, asks the loader for its lines.
        return self.source_to_code(self.get_source(name), f"{name}.py")
