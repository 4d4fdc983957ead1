"""What an installed Sieve does as Python starts: it has transformers and peft know pruned models.

`sieve_start.pth` imports this file in every interpreter of the environment. So it takes a fraction of a millisecond: it
waits for the first import of one of these libraries, and only then looks for Sieve, of which one file runs
(`sieve/checkpoint/import_hook.py`). Nothing happens where there is none. `SIEVE_START=off` turns it off.
"""

import os
import sys

_WAITED_FOR = ("transformers.quantizers.auto", "peft")


class _Starter:
    """A finder that hands over to the one of `import_hook` as soon as it is asked for one of these modules."""

    def find_spec(self, name, path=None, target=None):
        if name not in _WAITED_FOR:
            return None
        if self in sys.meta_path:
            sys.meta_path.remove(self)
        if _waiting() is not None:
            return None  # a program that has imported Sieve: its finder has been asked already
        _start()
        finder = _waiting()
        return None if finder is None else finder.find_spec(name, path, target)


def _waiting():
    """The finder of `import_hook`, if it is there."""
    return next((finder for finder in sys.meta_path if getattr(finder, "waits_for_sieve", False)), None)


def _start() -> None:
    import _frozen_importlib_external as external

    for finder in list(sys.meta_path):
        spec = finder.find_spec("sieve", None) if hasattr(finder, "find_spec") else None
        if spec is not None:
            break
    else:
        return
    for folder in spec.submodule_search_locations or ():
        path = os.path.join(folder, "checkpoint", "import_hook.py")
        if os.path.isfile(path):  # else it is another's module of this name
            hook = type(sys)("sieve_start_hook")
            external.SourceFileLoader(hook.__name__, path).exec_module(hook)
            hook.register()
            return


if os.environ.get("SIEVE_START") != "off":
    if any(name in sys.modules for name in _WAITED_FOR):
        _start()
    else:
        sys.meta_path.insert(0, _Starter())
