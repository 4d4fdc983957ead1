"""Exporting a pruned model's folder to a format that other tools read."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

from sieve.checkpoint import exporters
from sieve.checkpoint.exporters.base import Exporter
from sieve.errors import InputError
from sieve.models.config import check_device, check_dtype, find_model
from sieve.utils.files import atomic_file, atomic_folder, require_new
from sieve.utils.messages import shorten


def export_formats() -> list[str]:
    """The names of the formats, found without importing them."""
    return [file.name for file in iter_modules(exporters.__path__) if file.name != "base"]


def export(
    source: str | Path,
    output: str | Path,
    to: str,
    dtype: str = "auto",
    device: str = "cpu",
    trust_remote_code: bool = False,
) -> None:
    """Write a model's folder in another format, either completely or not at all.

    Args:
        source: a folder that `sieve prune` or `sieve.save` made; any that `sieve.load_model` reads will do.
        output: the file or folder to make; it must not exist, but may be an empty folder if the format is a folder.
        to: the name of a format, one of `export_formats()`.
        dtype, device, trust_remote_code: as for `sieve.load_model`.

    Raises: InputError for an unknown format, or one that cannot hold the model; StorageError if output cannot be
        written. Nothing is left behind then.

    Example:
        >>> sieve.export("runs/mine", "runs/dense", to="dense")
    """
    if to not in export_formats():
        raise InputError(f"cannot export to {shorten(to)}: choose one of {', '.join(export_formats())}")
    output = require_new(output)
    check_dtype(dtype)
    check_device(device)
    find_model(str(source))
    # Report mistakes in the arguments before torch is imported, which takes seconds.
    from sieve.checkpoint.torchao import first_quantized
    from sieve.models.loading import load_model, quiet_transformers

    exporter: Exporter = import_module(f"{exporters.__name__}.{to}").EXPORTER
    model, tokenizer = load_model(str(source), dtype, device, trust_remote_code)
    if (quantized := first_quantized(model)) is not None:
        raise InputError(
            f"{source} cannot be exported: {quantized} is quantised by torchao; export the folder that it was made from"
        )
    if (lack := exporter.lacks(model, tokenizer)) is not None:
        raise InputError(f"{source} cannot be exported to {to}: {lack}")
    making = atomic_file if exporter.writes_file else atomic_folder
    with making(output) as place, quiet_transformers():
        exporter.export(model, tokenizer, Path(source), place)
