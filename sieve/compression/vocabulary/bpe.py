"""A byte-pair encoding with fewer tokens, in the terms of a `tokenizer.json`.

Every text still encodes to tokens that decode to it: all symbols that encoding starts from (single characters, tokens
of bytes) stay, so dropping a token only means that its merge is not made. A text of kept tokens still encodes to
*those* tokens: a kept token keeps every merge that makes it, and the parts of these merges. So each merge that the full
encoding made in such a text still exists, in the same order, and no other merge was added.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from sieve.errors import InputError

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
# Decoders that turn a token and its parts into the same text.
_JOINING = ("ByteFallback", "ByteLevel", "Fuse", "Metaspace", "Replace", "Strip")

Spec = dict[str, Any]


def require_bpe(tokenizer: PreTrainedTokenizerBase) -> Spec:
    """The content of `tokenizer.json`; InputError, with the reason, for a tokenizer that cannot be trimmed."""
    from tokenizers import Tokenizer

    name = type(tokenizer).__name__
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer):
        raise _refused(name, "it is not one of the `tokenizers` library, whose merges can be read")
    spec = json.loads(backend.to_str())
    kind = spec["model"].get("type")
    if kind != "BPE":
        raise _refused(name, f"it is of type {kind}, and only byte-pair encodings have merges to leave out")
    for affix in ("continuing_subword_prefix", "end_of_word_suffix"):
        if spec["model"].get(affix):
            raise _refused(name, f"its tokens have a {affix.replace('_', ' ')} ({spec['model'][affix]})")
    kinds = list(_kinds(spec["decoder"]))
    strange = [one for one in kinds if one not in _JOINING]
    if strange or not kinds:
        what = f"its decoder ({strange[0]})" if strange else "without a decoder, it"
        raise _refused(name, f"{what} may write another text for the parts of a token than for the token")
    return spec


def _refused(name: str, reason: str) -> InputError:
    return InputError(f"the vocabulary of {name} cannot be trimmed: {reason}; leave trimming out")


def _kinds(decoder: Mapping[str, Any] | None) -> Iterator[str]:
    if decoder is None:
        return
    if decoder["type"] == "Sequence":
        for part in decoder["decoders"]:
            yield from _kinds(part)
    else:
        yield decoder["type"]


def needed(spec: Spec, ids: Iterable[int]) -> set[int]:
    """All ids that must stay if these stay: also symbols, special and added tokens, and the parts of every merge."""
    model = spec["model"]
    vocabulary: dict[str, int] = model["vocab"]
    tokens = {number: token for token, number in vocabulary.items()}
    roots = {*ids, *(one["id"] for one in spec["added_tokens"]), *_ids_of_post_processor(spec["post_processor"])}
    roots |= {number for token, number in vocabulary.items() if len(token) == 1}
    if model.get("byte_fallback"):
        roots |= {number for token, number in vocabulary.items() if _BYTE.fullmatch(token)}
    if model.get("unk_token") in vocabulary:
        roots.add(vocabulary[model["unk_token"]])
    parts = defaultdict(list)
    for left, right in map(_pair, model["merges"]):
        parts[left + right] += [vocabulary[left], vocabulary[right]]
    found: set[int] = set()
    waiting = list(roots)
    while waiting:
        number = waiting.pop()
        if number not in found:
            found.add(number)
            waiting += parts.get(tokens.get(number, ""), ())
    return found


def trimmed(spec: Spec, new_ids: Mapping[int, int]) -> Spec:
    """The tokenizer with only the tokens of `new_ids` (old id → new id), which must be complete (see `needed`)."""
    model = spec["model"]
    kept = {token: new_ids[number] for token, number in model["vocab"].items() if number in new_ids}
    merges = [pair for pair in model["merges"] if "".join(_pair(pair)) in kept]
    made = spec | {
        "model": model | {"vocab": kept, "merges": merges},
        "added_tokens": [one | {"id": new_ids[one["id"]]} for one in spec["added_tokens"]],
        "post_processor": _post_processor(spec["post_processor"], new_ids),
    }
    if spec.get("padding"):
        # If no token has the padding id, a user chose it freely: keep it.
        pad = spec["padding"]["pad_id"]
        made["padding"] = spec["padding"] | {"pad_id": new_ids.get(pad, pad)}
    return made


def backend_of(spec: Spec, like: Tokenizer) -> Tokenizer:
    """The tokenizer that `spec` describes, with the settings of `like` that files do not hold."""
    from tokenizers import Tokenizer

    made = Tokenizer.from_str(json.dumps(spec))
    made.encode_special_tokens = like.encode_special_tokens
    return made


def _pair(merge: str | list[str]) -> tuple[str, str]:
    """The two parts of a merge; files of earlier versions hold it as one string."""
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left, right


def _ids_of_post_processor(processor: Mapping[str, Any] | None) -> Iterator[int]:
    if processor is None:
        return
    for part in processor.get("processors", ()):
        yield from _ids_of_post_processor(part)
    if processor["type"] == "TemplateProcessing":
        for one in processor["special_tokens"].values():
            yield from one["ids"]
    for key in ("sep", "cls"):
        if key in processor:
            yield processor[key][1]


def _post_processor(processor: Mapping[str, Any] | None, new_ids: Mapping[int, int]) -> dict[str, Any] | None:
    if processor is None:
        return None
    made = dict(processor)
    if "processors" in processor:
        made["processors"] = [_post_processor(part, new_ids) for part in processor["processors"]]
    if processor["type"] == "TemplateProcessing":
        made["special_tokens"] = {
            name: one | {"ids": [new_ids[number] for number in one["ids"]]}
            for name, one in processor["special_tokens"].items()
        }
    for key in ("sep", "cls"):
        if key in processor:
            token, number = processor[key]
            made[key] = [token, new_ids[number]]
    return made
