"""A pruned model's folder: safetensors, config, tokenizer, report, recipe and model card."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sieve.checkpoint.card import model_card
from sieve.checkpoint.pair_format import in_format
from sieve.errors import InputError
from sieve.nn.low_rank import PAIRS, PivotedLinear
from sieve.tasks.stored import TASK_FILE
from sieve.utils.checksums import CHECKSUMS, write_checksums
from sieve.utils.files import atomic_folder, write_json, write_text, write_yaml

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from sieve.tasks import Task


def save(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    path: str | Path,
    report: Mapping[str, Any] | None = None,
    recipe: Mapping[str, Any] | None = None,
    task: Task | None = None,
    format: str | None = None,
) -> None:
    """Write the model to a new folder that transformers loads after `import sieve`; complete or not at all.

    Args:
        model: any causal LM, pruned by `sieve.apply_`; weights are stored in the dtype they have.
        tokenizer: stored beside it.
        path: the folder; it must not exist, or be empty.
        report: written to `report.json` and summed up in the model card `README.md`.
        recipe: written to `recipe.yaml`.
        task: what the model was pruned for, written to `task.yaml`: `sieve eval` then needs no other file of it but its
            data.
        format: how pairs are stored, whatever they are in the model: "pivoted", in the fewest numbers, or "plain", two
            products (the same map in r² more numbers each); None: as they are.

    Raises:
        InputError: the folder exists, the model has adapters or quantised weights, or the format is unknown.
        StorageError: the disk is full, or the place cannot be written; nothing is left behind.

    Example:
        >>> sieve.save(pruned, tokenizer, "runs/mine", report=report)
    """
    from sieve.models.loading import quiet_transformers

    _check_plain(model)
    with in_format(model, format), atomic_folder(path) as folder, quiet_transformers():
        ranks = write_quantization_config(model)
        with _stamped(model) as identity:
            model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        marked = getattr(model.config, "quantization_config", None)
        pivoted, masks = (marked.pivoted, marked.masks) if marked else (False, {})
        write_text(folder / "README.md", model_card(ranks, report, pivoted, masks, model._auto_class is not None))
        if report is not None:
            write_json(folder / "report.json", report)
        if recipe is not None:
            write_yaml(folder / "recipe.yaml", dict(recipe))
        if task is not None:
            write_yaml(folder / TASK_FILE, task.to_dict())
        write_checksums(folder, identity)


def load(
    path: str | Path,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device = "auto",
    trust_remote_code: bool = False,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model and tokenizer that `save` wrote; the model in eval mode, 2:4 masks compressed where the device can.

    Args:
        path: the folder.
        dtype: "auto" (as stored), "bfloat16", "float16", "float32" or a torch.dtype.
        device: "auto" (a GPU if there is one), or any torch device.
        trust_remote_code: run the code in the folder, for models that bring their own.

    Raises: InputError when the folder is not a model's, its code is not trusted, or weights are missing from it;
        StorageError when its weights are damaged.

    Example:
        >>> model, tokenizer = sieve.load("runs/mine")
    """
    from sieve.models.loading import load_model
    from sieve.nn.semi_structured import sparse_

    if not Path(path).is_dir():
        raise InputError(f"{path} is not a folder: name one that `sieve prune` or `sieve.save` made")
    model, tokenizer = load_model(str(Path(path).absolute()), dtype, device, trust_remote_code)
    sparse_(model)
    return model, tokenizer


def write_quantization_config(model: PreTrainedModel) -> dict[str, int]:
    """Write the ranks of the model's pairs into `model.config`, as `save_pretrained` needs them; returns them.

    Masks that are marked already stay so, but for matrices that are pairs now. A model without pairs and masks loses
    the mark: it is a plain transformers model.

    Raises: InputError where a marked matrix has more weights than its mask left it.
    """
    from sieve.checkpoint.hf_quantizer import SieveConfig
    from sieve.nn.stacked import stacks

    pairs = {name: layer for name, layer in model.named_modules() if isinstance(layer, PAIRS)}
    ranks = {name: pair.rank for name, pair in pairs.items()}
    pivoted = {isinstance(pair, PivotedLinear) for pair in pairs.values()}
    if len(pivoted) > 1:
        raise InputError("the model mixes pivoted and plain pairs: apply one plan to the dense model")
    biased = bool(pairs) and all((p if type(p) is PivotedLinear else p.B).bias is not None for p in pairs.values())
    present = getattr(model.config, "quantization_config", None)
    if present is not None and not isinstance(present, SieveConfig):
        raise InputError("the model is quantised: prune and save the original model, and quantise the result")
    kept = {name: share for name, share in (present.masks if present else {}).items() if name not in ranks}
    _check_masked(model, kept)
    shared = stacks(model)
    if ranks or kept or shared:
        pattern = present.pattern if kept else "unstructured"
        model.config.quantization_config = SieveConfig(
            ranks, pivoted.pop() if pivoted else False, masks=kept, pattern=pattern, biased=biased, shared=shared
        )
    elif present is not None:
        del model.config.quantization_config
    return ranks


def write_mask_config(model: PreTrainedModel, kept: Mapping[str, float], pattern: str) -> None:
    """Write into `model.config` which matrices are masked and what fraction of their weights they keep."""
    from sieve.checkpoint.hf_quantizer import SieveConfig

    present = getattr(model.config, "quantization_config", None)
    if present is not None and not isinstance(present, SieveConfig):
        raise InputError("the model is quantised: mask and save the original model, and quantise the result")
    before = present.masks if present else {}
    if before and present.pattern != pattern:
        pattern = "unstructured"  # that is what two patterns side by side are
    model.config.quantization_config = SieveConfig({}, masks={**before, **kept}, pattern=pattern)
    write_quantization_config(model)


def _check_masked(model: PreTrainedModel, kept: Mapping[str, float]) -> None:
    """Training or a merged adapter fills zeros without a word; what is saved must be what it says it is."""
    for name, share in kept.items():
        weight = model.get_submodule(name).weight.detach()
        if type(weight) is torch.Tensor and int(weight.count_nonzero()) > round(share * weight.numel()):
            raise InputError(
                f"{name} was masked to {share:.1%} of its weights and now has more: training or a merged adapter has "
                "filled the zeros. Mask it again, or `del model.config.quantization_config` to save it as a dense model"
            )


def _check_plain(model: PreTrainedModel) -> None:
    from transformers import PreTrainedModel

    if not isinstance(model, PreTrainedModel) or getattr(model, "peft_config", None):
        raise InputError(
            f"cannot save a {type(model).__name__}: give the transformers model itself, with adapters merged "
            "(`model.merge_and_unload()`)"
        )
    for name, parameter in model.named_parameters():
        if type(parameter.data) is not torch.Tensor:
            raise InputError(
                f"{name} is quantised ({type(parameter.data).__name__}): save first, quantise what you load"
            )


@contextmanager
def _stamped(model: PreTrainedModel) -> Iterator[str]:
    """Inside the block `model.save_pretrained` writes the id that is yielded into the weights' metadata."""
    from sieve.checkpoint.hf_quantizer import Stamp

    identity = os.urandom(16).hex()
    if getattr(model, "hf_quantizer", None) is not None:  # another library's, which has a say of its own
        yield identity
        return
    model.hf_quantizer = Stamp({"sieve": identity, "checksums": f"{CHECKSUMS} {identity}"})
    try:
        yield identity
    finally:
        del model.hf_quantizer
