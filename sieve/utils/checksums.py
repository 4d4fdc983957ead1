"""Checksums of a saved folder: `checksums.json` beside the weights, verified when Sieve or transformers loads them.

The weights that belong to the folder carry its id twice in the metadata of their header, so that a flipped bit cannot
hide them. Files that `save_pretrained`, an adapter's merge or another tool writes later carry no id: they are not
verified, and not refused.
"""

import hashlib
import json
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from sieve.errors import StorageError
from sieve.utils import progress
from sieve.utils.files import storage_errors, write_json

CHECKSUMS = "checksums.json"
VERSION = 1
PIECE = 1 << 26
"""Bytes of one piece. A file's checksum is taken over those of its pieces, which are hashed in parallel."""
_BLOCK = 1 << 20
# A safetensors file begins with the length of its header, of which the metadata are the first part. Those of torchao's
# tensors are long; a damaged length must not make us read the whole file.
_HEAD_MIN, _HEAD_MAX = 1 << 12, 1 << 25
# Not checked: users may edit the model card.
_FREE = {CHECKSUMS, "README.md"}

# File → its status when its checksum was last found right, so that it is not hashed again.
_verified: dict[Path, tuple[int, ...]] = {}


def write_checksums(folder: Path, identity: str) -> None:
    """Write `checksums.json` for all files in `folder`; call it after all of them are written."""
    names = sorted(file.name for file in folder.iterdir() if file.is_file() and file.name not in _FREE)
    digests = _digests([folder / name for name in names])
    content = {
        "version": VERSION,
        "id": identity,
        "piece_bytes": PIECE,
        "files": dict(zip(names, digests, strict=True)),
    }
    write_json(folder / CHECKSUMS, content | {"sha256": _digest_of(content)})


def identity_in(folder: Path) -> str:
    """The id of a folder with checksums; StorageError where they are damaged."""
    return _read(folder / CHECKSUMS)[0]


def verify(folder: str | Path) -> None:
    """Compare a saved folder's weights with its checksums; a folder without checksums passes.

    Other files, such as the configuration, may be edited: where they have changed a note says so.

    Raises: StorageError naming the weights that are damaged, or `checksums.json` if it is.
    """
    folder = Path(folder)
    if not (folder / CHECKSUMS).is_file():
        return
    # Hash only files that are not known to be right. The status is taken before hashing, so that a change during it is
    # noticed next time.
    with storage_errors(folder):
        identity, recorded = _read(folder / CHECKSUMS)
        there = [name for name in recorded if (folder / name).is_file()]
        belonging = [name for name in there if _belongs(folder / name, identity)]
        unknown = [name for name in belonging if _verified.get(folder / name) != _status(folder / name)]
        before = [_status(folder / name) for name in unknown]
        digests = _digests([folder / name for name in unknown])
    # Weights of the saved model must match; other files may have been edited.
    changed = [name for name in recorded if name not in belonging]
    for name, status, digest in zip(unknown, before, digests, strict=True):
        if digest == recorded[name]:
            _verified[folder / name] = status
        elif _is_weights(name):
            raise StorageError(
                f"{folder / name} is damaged: its checksum is not the one that it was saved with. Get the folder again "
                f"(if a tool of yours changed the file, remove {CHECKSUMS})"
            )
        else:
            changed.append(name)
    if changed:
        progress.note_once(f"unverified in {folder}, changed since Sieve saved it: {', '.join(sorted(changed))}")


def _read(path: Path) -> tuple[str, dict[str, str]]:
    """The id and the checksums by file name."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        digest = content.pop("sha256")
        if digest != _digest_of(content):
            raise ValueError("its own checksum does not match")
        if (content["version"], content["piece_bytes"]) != (VERSION, PIECE):
            raise ValueError("it was written by another version of Sieve")
        if any(Path(name).name != name for name in content["files"]):
            raise ValueError("it names files elsewhere")
        return content["id"], content["files"]
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise StorageError(
            f"{path} is damaged ({error}): get the folder again, or remove the file to load it unverified"
        ) from None


def _belongs(path: Path, identity: str) -> bool:
    """Whether weights are those that were saved, whole or damaged; other files carry no id and always count."""
    if not _is_weights(path.name):
        return True
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        return identity.encode() in file.read(min(max(length, _HEAD_MIN), _HEAD_MAX))


def _is_weights(name: str) -> bool:
    return name.endswith(".safetensors")


def _status(path: Path) -> tuple[int, ...]:
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _digest_of(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _digests(files: Iterable[Path]) -> list[str]:
    """Each file's SHA-256 (hex) over the SHA-256 of its pieces."""
    files = list(files)
    pieces = [(file, start) for file in files for start in range(0, max(file.stat().st_size, 1), PIECE)]
    totals = {file: hashlib.sha256() for file in files}
    # Threads are enough: hashing releases the GIL.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for (file, _), digest in zip(pieces, pool.map(_piece_digest, pieces), strict=True):
            totals[file].update(digest)
    return [total.hexdigest() for total in totals.values()]


def _piece_digest(piece: tuple[Path, int]) -> bytes:
    path, start = piece
    digest, left = hashlib.sha256(), PIECE
    with path.open("rb") as file:
        file.seek(start)
        while left and (block := file.read(min(left, _BLOCK))):
            digest.update(block)
            left -= len(block)
    return digest.digest()
