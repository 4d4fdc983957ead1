"""Removing rows from a model's embedding and output head: only rows of kept tokens stay."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

import torch
from torch import nn

from sieve.compression.vocabulary.token_ids import configurations, rename_ids_
from sieve.errors import InputError
from sieve.models.loading import evaluating
from sieve.utils.devices import device_failed

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Tokens of the text that shows whether the model still computes the same.
_PROBE = 8
# Logits may move by this fraction of the largest one: another shape sums in another order.
_SAME = 1e-3


def keep_rows_(model: PreTrainedModel, kept: Sequence[int]) -> None:
    """Leave the rows `kept` (old ids, in the order of their new ones) in the embedding and the head.

    Logits of the kept tokens do not change; ids in the model's configurations are renamed. If embedding and head share
    a table, they still do.

    Raises: InputError naming the part, without changing the model: for a head or an embedding of another kind, or
        another layer that looks tokens up.
    """
    embedding, head = _tables(model)
    new_ids = {old: new for new, old in enumerate(kept)}
    # Remember the logits of a short text of kept tokens, to compare them after the change.
    probe = torch.tensor([[kept[place * (len(kept) - 1) // max(_PROBE - 1, 1)] for place in range(_PROBE)]])
    before = _looked_up_once(model, probe)[:, list(kept)]
    # Remove the rows; every step can be undone.
    tied = head.weight is embedding.weight
    undo = [_keeping(embedding, ("weight",), kept), _keeping(head, ("weight", "bias"), kept)]
    if tied:
        head.weight = embedding.weight
    undo.append(_resize(model, embedding, head, new_ids))
    # The logits of kept tokens must not change; if they do, undo everything.
    try:
        after = _logits(model, torch.tensor([[new_ids[number] for number in probe[0].tolist()]]))
        same = after.shape == before.shape and _near(after, before, model.dtype)
    except Exception as error:
        if device_failed(error):
            raise
        # An architecture may raise anything for tables of another size.
        same = False
    if not same:
        for step in undo:
            step()
        raise InputError(
            f"the vocabulary of {type(model).__name__} cannot be trimmed: its logits depend on more than the rows of "
            "its embedding and head; leave trimming out"
        )
    rename_ids_(model, new_ids)


def _tables(model: PreTrainedModel) -> tuple[nn.Embedding, nn.Linear]:
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    for layer, kind, name in ((embedding, nn.Embedding, "embedding"), (head, nn.Linear, "output head")):
        plain = isinstance(layer, kind) and type(layer.weight.data) is torch.Tensor
        if not plain:
            raise InputError(
                f"the vocabulary of {type(model).__name__} cannot be trimmed: its {name} is "
                f"{'missing' if layer is None else f'a {type(layer).__name__} of a kind without plain rows'}"
            )
    if embedding.weight.shape[0] != head.weight.shape[0]:
        raise InputError(
            f"the vocabulary of {type(model).__name__} cannot be trimmed: its embedding has "
            f"{embedding.weight.shape[0]:,} rows and its output head {head.weight.shape[0]:,}"
        )
    return embedding, head


def _looked_up_once(model: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
    """The logits of the text [T, vocabulary]; InputError if another table is looked up by token ids."""
    others: list[str] = []

    def watch(name: str) -> Callable[..., None]:
        def seen(module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            if args and args[0].shape == ids.shape and torch.equal(args[0].cpu(), ids):
                others.append(name)

        return seen

    with ExitStack() as stack:
        for name, module in model.named_modules():
            if isinstance(module, nn.Embedding) and module is not model.get_input_embeddings():
                stack.callback(module.register_forward_pre_hook(watch(name)).remove)
        logits = _logits(model, ids)
    if others:
        raise InputError(
            f"the vocabulary of {type(model).__name__} cannot be trimmed: {others[0]} is a second table of its tokens"
        )
    return logits


@torch.no_grad()
def _logits(model: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
    with evaluating(model):
        return model(input_ids=ids.to(model.device), use_cache=False).logits[0].float()


def _near(one: torch.Tensor, other: torch.Tensor, dtype: torch.dtype) -> bool:
    bound = max(_SAME, 8 * torch.finfo(dtype).eps) * float(other.abs().max())
    return bool((one - other).abs().max() <= bound)


def _keeping(layer: nn.Module, names: Sequence[str], kept: Sequence[int]) -> Callable[[], None]:
    """Keep only these rows of the layer's parameters; returns a function that restores the others."""
    before = {name: parameter for name in names if (parameter := getattr(layer, name, None)) is not None}
    for name, parameter in before.items():
        rows = torch.tensor(kept, device=parameter.device)
        setattr(layer, name, nn.Parameter(parameter.detach()[rows].clone(), requires_grad=parameter.requires_grad))

    def restore() -> None:
        for name, parameter in before.items():
            setattr(layer, name, parameter)

    return restore


def _resize(
    model: PreTrainedModel, embedding: nn.Embedding, head: nn.Linear, new_ids: Mapping[int, int]
) -> Callable[[], None]:
    """Write the number of rows into layers and configurations, and the padding row, which gets no gradient, into the
    embedding; returns a function that restores the old values."""
    rows, padding = embedding.num_embeddings, embedding.padding_idx

    def say(old: int, new: int, padding: int | None) -> None:
        embedding.num_embeddings = head.out_features = new
        embedding.padding_idx = padding
        for holder in (*configurations(model), *model.modules()):
            if vars(holder).get("vocab_size") == old:
                holder.vocab_size = new

    say(rows, len(new_ids), new_ids.get(padding))
    return lambda: say(len(new_ids), rows, padding)
