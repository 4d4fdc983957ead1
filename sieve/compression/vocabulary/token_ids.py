"""Token ids that a model's configurations name: where its texts begin and end, what it never or always writes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

# eos_token_id, image_token_index, bad_words_ids, suppress_tokens and others of their kinds: numbers, however nested.
_IDS = re.compile(r"(?:.*_)?token_(?:ids?|index)|(?:.*_)?words_ids|(?:.*_)?suppress_tokens")
_POSITIONED = "forced_decoder_ids"  # pairs of a position and an id
_BIASED = "sequence_bias"  # ids → number, as a mapping or as pairs


def configurations(model: PreTrainedModel) -> list[Any]:
    """The model's configuration, those inside it, and what it generates by."""
    found = list(_nested(model.config))
    generation = getattr(model, "generation_config", None)
    return found if generation is None else [*found, generation]


def named_ids(model: PreTrainedModel) -> set[int]:
    """Every id that a configuration of the model names and that its embedding has a row for."""
    rows = model.get_input_embeddings().weight.shape[0]
    found: set[int] = set()
    for config in configurations(model):
        for key, value in vars(config).items():
            _mapped(key, value, lambda number: found.add(number) or number)
    return {number for number in found if 0 <= number < rows}


def rename_ids_(model: PreTrainedModel, new_ids: Mapping[int, int]) -> None:
    """Give every id in the configurations its new number; what is no id of a token (-1, say) stays."""
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
    """The value with each token id renamed, where the key says that it holds such."""
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
