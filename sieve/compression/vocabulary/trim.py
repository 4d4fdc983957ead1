"""Trimming a vocabulary: the tokens of some texts stay, and those that any other text can be spelled with."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from sieve.compression.vocabulary.bpe import Spec, backend_of, needed, require_bpe, trimmed
from sieve.compression.vocabulary.tables import keep_rows_
from sieve.compression.vocabulary.token_ids import named_ids
from sieve.errors import InputError
from sieve.models.loading import check_token_ids, quiet_transformers
from sieve.tasks.encoding import encode, encode_choices
from sieve.utils.messages import shorten

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from sieve.tasks import Example, Task

# Only this many texts are read by both tokenizers, to limit time.
_CHECKED = 256
# Scripts, combining marks, emoji of several code points, controls, spaces: these are hardly ever kept tokens.
_ODD = (
    "",
    " ",
    "Zürich naïve ﬁ",
    "Ελλάδα Москва 東京 서울 ไทย العربية",
    "\U0001f469\u200d\U0001f467\U0001f3f3\ufe0f\u200d\U0001f308",
    "a\u0301\u200b\ufeff\x00\x1b\r\n\t  ",
    "½²\U0010ffff",
)


@dataclass(frozen=True)
class TrimmedVocabulary:
    """The result of trimming a vocabulary.

    kept: the old id of each token, in the order of the new ids.
    before: the number of rows that the embedding had.
    """

    kept: tuple[int, ...]
    before: int

    def report(self) -> dict[str, int]:
        """Plain values for JSON."""
        return {"before": self.before, "after": len(self.kept)}


def trim_vocabulary_(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Iterable[str]
) -> TrimmedVocabulary:
    """Drop the tokens that no text needs, in place: from the embedding, the output head, and the tokenizer.

    Kept are the tokens of `texts`; special, added and chat tokens; those that the model's configurations name; all
    single bytes (or characters) that are tokens; and the parts of every merge that makes a kept token. Every text can
    still be written, perhaps with more and shorter tokens. A text whose tokens were all kept encodes to those tokens,
    with the same logits. Over fewer tokens the softmax makes every likelihood larger, so compare with the dense model
    over the same tokens (`match_vocabulary_`).

    Args:
        model: dense or pruned. New ids are in the order of the old ones.
        tokenizer: a byte-pair encoding of the `tokenizers` library, such as those of GPT-2, Llama 3, Qwen, SmolLM.

    Raises: InputError, with the reason, for a tokenizer or model that cannot be trimmed; both stay unchanged.

    Example:
        >>> trimmed = sieve.trim_vocabulary_(model, tokenizer, ["In which country is Bonn? Germany"])
        >>> trimmed.before, len(trimmed.kept)
        (49152, 271)
    """
    if isinstance(texts, str):
        raise InputError("the texts of a vocabulary must be a list of texts, got one: put it in a list")
    texts = list(texts)
    if not texts:
        raise InputError("no texts given to choose tokens by: name some that the model will read and write")
    return keep_tokens_(model, tokenizer, [tokenizer.encode(text) for text in texts])


def keep_tokens_(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, sequences: Iterable[Sequence[int]]
) -> TrimmedVocabulary:
    """`trim_vocabulary_` for texts that are already token ids."""
    sequences = [list(ids) for ids in sequences]
    spec = require_bpe(tokenizer)
    rows = model.get_input_embeddings().weight.shape[0]
    roots = {number for ids in (*sequences, _chat(tokenizer)) for number in ids}
    kept = sorted(needed(spec, roots | named_ids(model)))
    check_token_ids(model, tokenizer, kept[-1])
    backend = _rebuilt(model, tokenizer, spec, kept, sequences)
    keep_rows_(model, kept)
    tokenizer._tokenizer = backend
    return TrimmedVocabulary(tuple(kept), rows)


def match_vocabulary_(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, like: PreTrainedTokenizerBase
) -> TrimmedVocabulary | None:
    """Reduce the model to the tokens of the tokenizer `like`, which it needs from then on; None if it has no others.

    For comparisons with a trimmed model over the same tokens. Tokens are matched by their text, not by their ids.

    Args: tokenizer: the model's own; not changed.

    Raises: InputError if `like` has tokens that `tokenizer` lacks.
    """
    known, wanted = tokenizer.get_vocab(), like.get_vocab()
    if known == wanted:
        return None
    tokens = sorted(wanted, key=wanted.get)
    numbers = [known.get(token) for token in tokens]
    if None in numbers or [wanted[token] for token in tokens] != list(range(len(tokens))):
        raise InputError(
            "the teacher has another vocabulary than the model: name the dense model that it was made from"
        )
    rows = model.get_input_embeddings().weight.shape[0]
    keep_rows_(model, numbers)
    return TrimmedVocabulary(tuple(numbers), rows)


def has_fewer_tokens(tokenizer: PreTrainedTokenizerBase, than: PreTrainedTokenizerBase) -> bool:
    """Whether its tokens are a proper subset of the other's, as for a trimmed model."""
    return tokenizer.get_vocab().keys() < than.get_vocab().keys()


def task_sequences(tokenizer: PreTrainedTokenizerBase, task: Task, examples: Sequence[Example]) -> list[list[int]]:
    """Token ids of all texts that the task makes the model read and write in these examples."""
    encoded = []
    for one in examples:
        if one.choices:
            prompts = [one.prompt, one.neutral] if task.normalize == "prior" else [one.prompt]
            for prompt in prompts:
                encoded += encode_choices(tokenizer, task, prompt, one.choices)
        else:
            encoded += [encode(tokenizer, task, one, text) for text in {one.target, *one.references, ""}]
    return [ids for ids, _ in encoded]


def _chat(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Tokens that the chat template adds to a conversation; empty if the tokenizer has no template."""
    if not getattr(tokenizer, "chat_template", None):
        return []
    said = [{"role": role, "content": "."} for role in ("user", "assistant", "user")]
    found: list[int] = []
    for messages in (said, [{"role": "system", "content": "."}, *said]):
        try:
            text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        except Exception:
            # Templates refuse roles by errors of their own.
            continue
        found += tokenizer.encode(text, add_special_tokens=False)
    return found


def _rebuilt(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    spec: Spec,
    kept: Sequence[int],
    sequences: Sequence[Sequence[int]],
) -> Tokenizer:
    """The tokenizer of the kept tokens; InputError if it, or its saved and loaded copy, does not encode as it must."""
    new_ids = {old: new for new, old in enumerate(kept)}
    old = tokenizer.backend_tokenizer
    made = backend_of(trimmed(spec, new_ids), old)
    wrong = [token for token, number in old.get_vocab().items() if made.token_to_id(token) != new_ids.get(number)]
    read = [old.decode(list(ids), skip_special_tokens=False) for ids in islice(sequences, _CHECKED)]
    for text in (*read, *_ODD):
        before, after = (one.encode(text, add_special_tokens=False).ids for one in (old, made))
        exact = all(number in new_ids for number in before)
        if (exact and [new_ids[number] for number in before] != after) or old.decode(before) != made.decode(after):
            wrong.append(text)
    # Some classes change the tokenizer when they load it: refuse this only if they do not do it with all tokens too.
    lost = not wrong and not _survives(model, tokenizer, made, read) and _survives(model, tokenizer, old, read)
    if wrong or lost:
        what = "it changes when it is saved and loaded" if lost else f"it would encode {shorten(wrong[0])} differently"
        raise InputError(f"the vocabulary of {type(tokenizer).__name__} cannot be trimmed: {what}; leave trimming out")
    return made


def _survives(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, backend: Tokenizer, texts: Sequence[str]
) -> bool:
    """Whether the tokenizer with this backend encodes texts in the same way after saving and loading."""
    from transformers import AutoTokenizer

    before: Any = tokenizer._tokenizer
    with tempfile.TemporaryDirectory() as folder, quiet_transformers():
        try:
            tokenizer._tokenizer = backend
            tokenizer.save_pretrained(folder)
            # The model's configuration also decides the tokenizer's class.
            model.config.save_pretrained(folder)
            loaded = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            return all(loaded.encode(text) == tokenizer.encode(text) for text in (*texts, *_ODD))
        except (ValueError, OSError):
            # The class is not in transformers, as for remote code.
            return False
        finally:
            tokenizer._tokenizer = before
