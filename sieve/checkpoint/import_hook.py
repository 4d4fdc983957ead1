"""Registering `quant_method: sieve` with transformers, and pruned matrices with peft, without importing either.

Transformers' table of quantizers takes seconds to import, and `import sieve` should not. So a finder on `sys.meta_path`
registers Sieve's quantizer right after the program has imported this table. Programs that load a model import it
anyway. The same is done for peft.

If Sieve is installed, `sieve_start.py` runs this file outside the package, when a program first imports one of these
libraries. So this file imports nothing of Sieve, and nothing that takes time.
"""

import sys

_OURS = {
    "transformers.quantizers.auto": "sieve.checkpoint.hf_quantizer",
    "peft": "sieve.checkpoint.adapters",
}
"""The module to wait for → our module, which registers when it is imported, or has a function `register`."""


def register() -> None:
    """Register now with the libraries that are loaded, and later with the others. Calling it again is harmless."""
    # Recognise our finder by a mark, not by its class: this file may run under two names.
    if not any(getattr(finder, "waits_for_sieve", False) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Waiting())
    for theirs in _OURS:
        if theirs in sys.modules:
            _register(theirs)


def _register(theirs: str) -> None:
    """Import our module; if that fails, only warn, because the user's own import must still work."""
    import importlib

    try:
        # If a program imports our module first, it is not complete yet; it will register itself.
        then = getattr(importlib.import_module(_OURS[theirs]), "register", None)
        if then is not None:
            then()
    except Exception as error:
        import warnings

        warnings.warn(f"Sieve cannot be used with {theirs}: {type(error).__name__}: {error}", stacklevel=2)


class _Waiting:
    """The finder stays installed: lookups, imports in other threads and reloads must not disable it."""

    waits_for_sieve = True

    def find_spec(self, name, path=None, target=None):
        if name not in _OURS:
            return None
        for finder in list(sys.meta_path):
            # Two threads can put two of our finders there: they must not ask each other.
            ours = getattr(finder, "waits_for_sieve", False)
            spec = None if ours or not hasattr(finder, "find_spec") else finder.find_spec(name, path, target)
            if spec is not None:
                if spec.loader is not None:
                    spec.loader = _Loader(spec.loader)
                return spec
        return None


class _Loader:
    """Wraps a module's loader, and registers after it has run."""

    def __init__(self, loader):
        self.loader = loader

    def create_module(self, spec):
        return self.loader.create_module(spec)

    def exec_module(self, module):
        # The module shows its own loader, as if there were no other.
        module.__spec__.loader = module.__loader__ = self.loader
        self.loader.exec_module(module)
        _register(module.__spec__.name)

    def __getattr__(self, name):
        if name == "loader":
            # `loader` is not set yet, as in a copy.
            raise AttributeError(name)
        return getattr(self.loader, name)
