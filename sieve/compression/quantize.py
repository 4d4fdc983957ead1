"""The pairs of a pruned model in 8 or 4 bits: the last step, after pruning and healing."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from sieve.calibration.statistics import Statistics
from sieve.checkpoint.folder import write_quantization_config
from sieve.checkpoint.torchao import first_quantized
from sieve.errors import InputError
from sieve.models.linears import check_finite, replace
from sieve.nn.formats.base import LowRankFormat, format_of, formats_of
from sieve.nn.formats.quantized_pair import BITS, QuantizedPair
from sieve.utils.messages import shorten


@torch.no_grad()
def quantize_(model: PreTrainedModel, kind: str, statistics: Statistics | None = None) -> PreTrainedModel:
    """Store the factors of all low-rank pairs as integers with scales, in place; returns the model.

    An 8-bit factor has a scale for each row, a 4-bit one for each 64 numbers of a row, each chosen for the least error.
    Layers that are dense, embeddings and the output head stay as they are, and tied ones stay tied. What is left is for
    inference: gradients flow through it, and none reach the factors. It is saved, and loads in any dtype: casts leave
    integers and scales alone. Pivoted pairs are stored plain, in r² more integers.

    Args:
        model: pruned by `sieve.apply_`, or loaded.
        kind: "int8" or "int4".
        statistics: those that its pairs were projected with. Where they hold the Gram matrix of a matrix's inputs,
            errors are weighed by the energy that each column meets on the data; elsewhere all columns count alike.

    Raises: InputError for another kind, a model without pairs, or one that is quantised already; NumericsError for
        weights that are not finite. The model is not changed then.

    Example:
        >>> model, tokenizer = sieve.load("runs/mine")
        >>> sieve.save(sieve.quantize_(model, "int8"), tokenizer, "runs/mine-int8")
    """
    if kind not in BITS:
        raise InputError(f"cannot quantise to {shorten(kind)}: choose one of {', '.join(BITS)}")
    pairs = {name: one for name, one in formats_of(model).items() if isinstance(one, LowRankFormat)}
    quantised = [name for name, one in pairs.items() if isinstance(one, QuantizedPair)]
    if quantised or first_quantized(model) is not None:
        what = f"{quantised[0]} is in {pairs[quantised[0]].bits} bits" if quantised else "its weights are quantised"
        raise InputError(f"the model is quantised already ({what}): quantise the pruned model that it was made from")
    if not pairs:
        raise InputError("the model has no low-rank pairs to quantise: prune it first (masks have none)")
    check_finite(model)
    made: dict[torch.nn.Module, torch.nn.Module] = {}
    for name, module in list(model.named_modules(remove_duplicate=False)):
        format = format_of(module)
        if not isinstance(format, LowRankFormat):
            continue
        if module not in made:
            made[module] = _quantized(module, format, BITS[kind], _input_gram(statistics, name))
        replace(model, name, made[module])
    write_quantization_config(model)
    return model


def _quantized(pair: torch.nn.Module, format: LowRankFormat, bits: int, gram: torch.Tensor | None) -> torch.nn.Module:
    A, B, bias = format.factors(pair)
    new = QuantizedPair(format.rank, bits=bits)
    made = new.module(B.shape[0], A.shape[1], bias is not None, A.device, A.dtype)
    new.fill_(made, A, B, bias, None if gram is None else gram.to(A.device))
    made.train(pair.training)
    return made.requires_grad_(A.requires_grad)


def _input_gram(statistics: Statistics | None, name: str) -> torch.Tensor | None:
    """Of the inputs of a matrix [n, n], where it was collected."""
    source = None if statistics is None else statistics.sources.get(name)
    return statistics.grams[source.gram] if source is not None and source.side == "input" and source.gram else None
