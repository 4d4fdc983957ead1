"""Token ids in a model's configurations: begin and end of texts, and tokens that are forbidden or forced."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

# eos_token_id, image_token_index, bad_words_ids, suppress_tokens and similar keys hold ids, possibly in nested lists.
_IDS = re.compile(r"(?:.*_)?token_(?:ids?|index)|(?:.*_)?words_ids|(?:.*_)?suppress_tokens")
# Holds pairs of a position and an id.
_POSITIONED = "forced_decoder_ids"
# Maps ids to a number, as a mapping or as pairs.
_BIASED = "sequence_bias"


def configurations(model: PreTrainedModel) -> list[Any]:
    """The model's configuration, nested ones, and its generation config."""
    found = list(_nested(model.config))
    generation = getattr(model, "generation_config", None)
    return found if generation is None else [*found, generation]


def named_ids(model: PreTrainedModel) -> set[int]:
    """Every id in the model's configurations for which the embedding has a row."""
    rows = model.get_input_embeddings().weight.shape[0]
    found: set[int] = set()
    for config in configurations(model):
        for key, value in vars(config).items():
            _mapped(key, value, lambda number: found.add(number) or number)
    return {number for number in found if 0 <= number < rows}


def rename_ids_(model: PreTrainedModel, new_ids: Mapping[int, int]) -> None:
    """Rename every id in the configurations; numbers that are no token's id (such as -1) stay."""
    for config in configurations(model):
        for key, value in list(vars(config).items()):
            renamed = _mapped(key, value, lambda number: new_ids.get(number, number))
            if renamed != value:
                setattr(config, key, renamed)


def _nested(config: PretrainedConfig) -> Iterator[PretrainedConfig]:
    from transformers import PretrainedConfig

    yield config
    for value in vars(config).values():
        if isinstance(value, PretrainedConfig):
            yield from _nested(value)


def _mapped(key: str, value: Any, rename: Any) -> Any:
    """The value with each token id renamed, if the key says that it holds token ids."""
    if key == _POSITIONED and value is not None:
        return [[position, _renamed(number, rename)] for position, number in value]
    if key == _BIASED and value is not None:
        if isinstance(value, Mapping):
            return {tuple(_renamed(list(ids), rename)): bias for ids, bias in value.items()}
        return [[_renamed(ids, rename), bias] for ids, bias in value]
    return _renamed(value, rename) if _IDS.fullmatch(key.removeprefix("_")) else value


def _renamed(value: Any, rename: Any) -> Any:
    if isinstance(value, list | tuple):
        return type(value)(_renamed(one, rename) for one in value)
    return rename(value) if isinstance(value, int) and not isinstance(value, bool) else value
