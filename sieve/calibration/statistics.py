"""The result of a calibration pass: Gram matrices, which serves which matrix, and what they were measured on."""

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from sieve.calibration.text import Sample
from sieve.errors import InputError, StorageError
from sieve.utils.files import atomic_file
from sieve.utils.identity import differences, tensors_digest
from sieve.utils.messages import one_line

VERSION = 3
# The three sums of every input channel, in the order of the rows.
SUMS = ("x", "|x|", "x²")
# Prefixes of keys in a file.
_SUMS, _IMPORTANCE = "sums of ", "importance of "
# Keys in a file's metadata.
_HEADER, _DIGEST = "sieve_statistics", "sha256"


@dataclass(frozen=True)
class Source:
    """The keys of a matrix's statistics: `gram` is the key of a Gram matrix of its inputs or bias-free outputs.

    `gradient` is the key of the Gram matrix of the loss's gradients at its outputs; `inputs` that of its inputs' sums.
    "" if the method needs none.
    """

    side: Literal["input", "output"]
    gram: str
    gradient: str = ""
    inputs: str = ""


@dataclass
class Statistics:
    """Sums over the calibration tokens.

    grams: key → Σ x xᵀ [d, d] float32 on the model's device, of inputs (shared by all matrices that read them)
        or of bias-free outputs; and Σ g gᵀ [k, k] of gradients g at outputs, k = min(m, n), where m > n in the
        coordinates of `column_basis(W)`, beyond which they do not matter.
    sources: matrix name → the keys of its statistics, and the side of its Gram.
    tokens: how many tokens were summed.
    sums: key → [3, n] float32 on the model's device: Σ x, Σ |x| and Σ x² of each input channel (`SUMS`).
    identity: model, tokenizer, data, versions and kind of these statistics.
    samples: the calibration examples that were summed, for methods that use them again.
    held_back: calibration examples that were left out of the sums, for methods that choose a setting on them.
    generated: those of `samples` that the model generated itself.
    importance: matrix name → Σ (x ∂L/∂x)² [n] float32 of each of its input channels, of MLPs that may lose channels.
    """

    grams: dict[str, torch.Tensor]
    sources: dict[str, Source]
    tokens: int
    sums: dict[str, torch.Tensor] = field(default_factory=dict)
    identity: dict[str, Any] = field(default_factory=dict)
    samples: list[Sample] = field(default_factory=list)
    held_back: list[Sample] = field(default_factory=list)
    importance: dict[str, torch.Tensor] = field(default_factory=dict)
    generated: list[Sample] = field(default_factory=list)

    def save(self, path: str | Path) -> None:
        header = {
            "version": VERSION,
            "tokens": self.tokens,
            "identity": self.identity,
            "sources": {name: asdict(source) for name, source in self.sources.items()},
            "texts": self.samples,
            "held_back": self.held_back,
            "generated": self.generated,
        }
        tensors = self.grams | {f"{_SUMS}{key}": value for key, value in self.sums.items()}
        tensors |= {f"{_IMPORTANCE}{key}": value for key, value in self.importance.items()}
        tensors = {key: value.contiguous().cpu() for key, value in tensors.items()}
        text = json.dumps(header)
        with atomic_file(path) as temporary:
            save_file(tensors, temporary, metadata={_HEADER: text, _DIGEST: _digest(text, tensors)})

    @classmethod
    def load(cls, path: str | Path, device: torch.device | str = "cpu") -> "Statistics":
        """Read what `save` wrote. Raises StorageError for anything else, even for a single changed bit."""
        try:
            with safe_open(path, framework="pt") as file:
                # Read the header first: it says whether this is a calibration, and in which format.
                metadata = file.metadata() or {}
                if _HEADER not in metadata:
                    raise StorageError(f"{path} is no calibration of Sieve's: name another file with --statistics")
                header = json.loads(metadata[_HEADER])
                if header["version"] != VERSION:
                    raise StorageError(
                        f"{path} is of format {header['version']}, this Sieve reads {VERSION}: remove it"
                    )
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
            if metadata.get(_DIGEST) != _digest(metadata[_HEADER], tensors):
                raise ValueError("its checksum does not match")
        except StorageError:
            raise
        except Exception as error:
            # Damaged headers make safetensors and the JSON parser raise errors of many kinds.
            raise StorageError(
                f"{path} is no calibration of Sieve's, or damaged ({one_line(error)}): remove it if it is one, or name "
                "another file with --statistics"
            ) from None
        # Turn tensors and header back into objects.
        tensors = {key: value.to(device) for key, value in tensors.items()}
        sources = {name: Source(**source) for name, source in header["sources"].items()}
        samples, held_back, generated = (
            [Sample(*one) for one in header.get(which, [])] for which in ("texts", "held_back", "generated")
        )
        sums, importance = (
            {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
            for prefix in (_SUMS, _IMPORTANCE)
        )
        grams = {key: value for key, value in tensors.items() if not key.startswith((_SUMS, _IMPORTANCE))}
        return cls(
            grams, sources, header["tokens"], sums, header["identity"], samples, held_back, importance, generated
        )

    @staticmethod
    def is_in(path: str | Path) -> bool:
        """Whether the file at `path` says that it is a calibration of ours."""
        with suppress(Exception), safe_open(path, framework="pt") as file:
            return _HEADER in (file.metadata() or {})
        return False

    def require(self, identity: Mapping[str, Any], where: str | Path) -> None:
        """InputError unless these statistics are of exactly this model, data and kind."""
        different = differences(self.identity, identity)
        if different:
            raise InputError(
                f"the statistics in {where} are of another {' and '.join(different)}: "
                "remove the file or name another with --statistics"
            )


def _digest(header: str, tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 (hex) of the whole content of a file."""
    return hashlib.sha256(f"{header}\n{tensors_digest(dict(sorted(tensors.items())))}".encode()).hexdigest()
