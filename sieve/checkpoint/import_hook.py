"""Making transformers know `quant_method: sieve`, and peft pruned matrices, without importing either.

Transformers' table of quantizers takes seconds to import, and `import sieve` should not. So a finder on
`sys.meta_path` sees to it that ours is registered right after the table has run. Whoever loads a model imports that
table anyway. So it is with peft.

Where Sieve is installed, `sieve_start.py` runs this file as Python starts, not as a part of the package: it imports
nothing of Sieve, and nothing that takes time.
"""

import sys

_OURS = {
    "transformers.quantizers.auto": "sieve.checkpoint.hf_quantizer",
    "peft": "sieve.checkpoint.adapters",
}
"""What is waited for → our module, which registers as it is imported, or has a function `register`."""


def register() -> None:
    """Register now what is loaded, and the rest whenever it is. Calling it again is harmless."""
    # By a mark, not by its class: this file may run under two names.
    if not any(getattr(finder, "waits_for_sieve", False) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Waiting())
    for theirs in _OURS:
        if theirs in sys.modules:
            _register(theirs)


def _register(theirs: str) -> None:
    """A Sieve that cannot be imported must not keep others from importing what is theirs."""
    import importlib

    try:
        # Where a program imports our module first, it is not complete yet, and registers itself.
        then = getattr(importlib.import_module(_OURS[theirs]), "register", None)
        if then is not None:
            then()
    except Exception as error:
        import warnings

        warnings.warn(f"Sieve cannot be used with {theirs}: {type(error).__name__}: {error}", stacklevel=2)


class _Waiting:
    """It stays where it is: a look at a module, an import in another thread or a reload takes nothing from the next."""

    waits_for_sieve = True

    def find_spec(self, name, path=None, target=None):
        if name not in _OURS:
            return None
        for finder in list(sys.meta_path):
            spec = None if finder is self or not hasattr(finder, "find_spec") else finder.find_spec(name, path, target)
            if spec is not None:
                if spec.loader is not None:
                    spec.loader = _Loader(spec.loader)
                return spec
        return None


class _Loader:
    """Another loader, after which ours is registered."""

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
        if name == "loader":  # not made yet, as in a copy
            raise AttributeError(name)
        return getattr(self.loader, name)
