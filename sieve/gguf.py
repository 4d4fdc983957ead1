"""A GGUF file as a folder of safetensors, made once and kept in the cache.

Reading GGUF takes half a minute for a small model, most of it in parsing the vocabulary; the folder loads in a second.
Weights are unpacked to float32, which holds every GGUF type exactly, so that no precision is lost whatever dtype the
model then runs in.
"""

import hashlib
import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from sieve import progress
from sieve.errors import InputError, StorageError
from sieve.files import atomic_folder, cache_dir, write_json

_FORMAT = 1  # of the folder: raise it when the conversion changes
_MANIFEST = "manifest.json"
_SHARD = "128MB"  # several files are hashed in parallel


def safetensors_folder(gguf: Path) -> Path:
    """The cached folder with the model and tokenizer of `gguf`; converts on first use, or if the copy is damaged.

    The folder is named by the file's contents, appears only when complete, and its checksums are verified every time.
    Processes that convert the same file at once do so side by side; the first to finish is kept.

    Raises: InputError if the file is no GGUF or of an architecture that transformers cannot read; StorageError.
    """
    source = {"name": gguf.name, "bytes": gguf.stat().st_size, "sha256": _sha256(gguf)}
    folder = cache_dir() / "models" / f"{gguf.stem}-{source['sha256'][:16]}"
    if folder.exists():
        if _is_intact(folder, source):
            return folder
        progress.say(f"  the cached copy of {gguf.name} is damaged: making it again")
        shutil.rmtree(folder, ignore_errors=True)
    progress.say(f"  converting {gguf.name}, once")
    try:
        with atomic_folder(folder) as temporary:
            _convert(gguf, temporary)
            write_json(temporary / _MANIFEST, {"format": _FORMAT, "source": source, "files": _checksums(temporary)})
    except (InputError, StorageError):
        if not _is_intact(folder, source):  # else another process was quicker
            raise
    return folder


def _convert(gguf: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    place, options = str(gguf.parent), {"gguf_file": gguf.name, "local_files_only": True, "trust_remote_code": False}
    try:
        tokenizer = AutoTokenizer.from_pretrained(place, **options)
        model = AutoModelForCausalLM.from_pretrained(
            place, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True), **options
        )
    except Exception as error:  # of many kinds, from four libraries
        reason = " ".join(str(error).split())
        raise InputError(f"cannot read {gguf}: {reason}; give the model as safetensors or another GGUF file") from error
    model.save_pretrained(folder, max_shard_size=_SHARD)
    tokenizer.save_pretrained(folder)


def _is_intact(folder: Path, source: dict[str, Any]) -> bool:
    """Whether the folder is a complete, unchanged conversion of `source`."""
    try:
        manifest = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
        return manifest == {"format": _FORMAT, "source": source, "files": _checksums(folder)}
    except (OSError, ValueError):
        return False


def _checksums(folder: Path) -> dict[str, str]:
    files = sorted(file for file in folder.iterdir() if file.name != _MANIFEST)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return dict(zip((file.name for file in files), pool.map(_sha256, files), strict=True))


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
