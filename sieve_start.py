"""What an installed Sieve does as Python starts: it has transformers and peft know pruned models.

`sieve_start.pth` imports this file in every interpreter of the environment. So it takes about a millisecond: it
imports nothing of Sieve, of which only one file runs (`sieve/checkpoint/import_hook.py`), and nothing happens
where there is none. `SIEVE_START=off` turns it off.
"""

import _frozen_importlib_external as external
import os
import sys


def _start() -> None:
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
    _start()
