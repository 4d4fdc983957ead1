"""A pruned model's folder: safetensors, config, tokenizer, report, recipe and model card."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sieve.checkpoint.card import model_card
from sieve.checkpoint.carried import carry_report
from sieve.checkpoint.pair_format import in_format
from sieve.checkpoint.torchao import first_quantized
from sieve.checkpoint.weight_files import guard_saving_, take_over
from sieve.errors import InputError
from sieve.nn.formats.base import LayerFormat, formats_of
from sieve.nn.formats.masked import Masked, masked_layers
from sieve.nn.stacked import stacks
from sieve.tasks.stored import TASK_FILE
from sieve.utils.checksums import CHECKSUMS, write_checksums
from sieve.utils.files import atomic_folder, write_json, write_text, write_yaml

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from sieve.checkpoint.hf_quantizer import SieveConfig
    from sieve.tasks import Task


def save(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    path: str | Path,
    report: Mapping[str, Any] | None = None,
    recipe: Mapping[str, Any] | None = None,
    task: Task | None = None,
    format: str | None = None,
    pages: Mapping[str, str] | None = None,
) -> None:
    """Write the model to a new folder that transformers loads after `import sieve`, completely or not at all.

    Args:
        model: any causal LM, pruned by `sieve.apply_`; weights are stored in the dtype they have.
        tokenizer: stored beside it.
        path: the folder; it must not exist, or be empty.
        report: written to `report.json` and summed up in the model card `README.md`. Without one, report, recipe and
            task of the folder that the model was loaded from are copied, with a note.
        recipe: written to `recipe.yaml`.
        task: what the model was pruned for, written to `task.yaml`: `sieve eval` then needs no other file of it but its
            data.
        format: how pairs are stored, whatever the model has: "pivoted", with the fewest numbers, or "plain", two
            matrices (the same map in r² more numbers each); None: as they are.
        pages: file name → text of further files in the folder, such as `report.html`.

    Raises:
        InputError: the folder exists, the model has adapters or quantised weights, or the format is unknown.
        StorageError: the disk is full, or the place cannot be written; nothing is left behind.

    Example:
        >>> sieve.save(pruned, tokenizer, "runs/mine", report=report)
    """
    from sieve.checkpoint.hf_quantizer import needs_sieve
    from sieve.models.loading import quiet_transformers

    _check_plain(model, format)
    with in_format(model, format), atomic_folder(path) as folder, quiet_transformers():
        # The weights, with an id that ties them to the checksums; if they need Sieve, only Sieve finds them.
        layers = write_quantization_config(model)
        with _stamped(model) as identity:
            model.save_pretrained(folder)
        if needs_sieve(model):
            take_over(folder)
        tokenizer.save_pretrained(folder)
        # What people and commands read: model card, report, recipe and task.
        if report is None:
            report = carry_report(model, folder)
        write_text(folder / "README.md", model_card(layers, report, bool(stacks(model)), model._auto_class is not None))
        if report is not None:
            write_json(folder / "report.json", report)
        if recipe is not None:
            write_yaml(folder / "recipe.yaml", dict(recipe))
        if task is not None:
            write_yaml(folder / TASK_FILE, task.to_dict())
        for name, text in (pages or {}).items():
            write_text(folder / name, text)
        # Checksums come last, when all other files are complete.
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


def write_quantization_config(model: PreTrainedModel) -> dict[str, LayerFormat]:
    """Write the formats of the model's layers into `model.config` for `save_pretrained`; returns the formats.

    Layers that are marked as masked stay masked unless they have another format now. A model whose layers are all
    dense loses the mark: it is a plain transformers model.

    Raises: InputError where a masked matrix has more weights than its mask left it.
    """
    from sieve.checkpoint.hf_quantizer import SieveConfig, needs_sieve

    present = _present(model, "prune")
    replaced, shared = formats_of(model), stacks(model)
    masked = {name: format for name, format in masked_layers(model).items() if name not in replaced}
    _check_masked(model, masked)
    layers = masked | replaced
    if layers or shared:
        model.config.quantization_config = SieveConfig(layers, stacks=shared)
    elif present is not None:
        del model.config.quantization_config
    guard_saving_(model, needs_sieve(model))
    return layers


def write_mask_config(model: PreTrainedModel, kept: Mapping[str, float], pattern: str) -> None:
    """Write into `model.config` which matrices are masked and what fraction of their weights they keep."""
    from sieve.checkpoint.hf_quantizer import SieveConfig

    _present(model, "mask")
    masked = {name: Masked(share, pattern) for name, share in kept.items()}
    model.config.quantization_config = SieveConfig(masked_layers(model) | masked)
    write_quantization_config(model)


def _present(model: PreTrainedModel, wanted: str) -> SieveConfig | None:
    """The model's present quantization config; InputError if it is another library's."""
    from sieve.checkpoint.hf_quantizer import SieveConfig

    present = getattr(model.config, "quantization_config", None)
    if present is not None and not isinstance(present, SieveConfig):
        raise InputError(f"the model is quantised: {wanted} and save the original model, and quantise the result")
    return present


def _check_masked(model: PreTrainedModel, masked: Mapping[str, Masked]) -> None:
    """InputError if a masked layer has lost zeros: training or a merged adapter fills them silently."""
    for name, format in masked.items():
        weight = model.get_submodule(name).weight.detach()
        if type(weight) is torch.Tensor and int(weight.count_nonzero()) > round(format.kept * weight.numel()):
            raise InputError(
                f"{name} was masked to {format.kept:.1%} of its weights and now has more: training or a merged adapter "
                "has filled the zeros. Mask it again, or `del model.config.quantization_config` to save it as a dense "
                "model"
            )


def _check_plain(model: PreTrainedModel, format: str | None) -> None:
    from transformers import PreTrainedModel

    if not isinstance(model, PreTrainedModel) or getattr(model, "peft_config", None):
        raise InputError(
            f"cannot save a {type(model).__name__}: give the transformers model itself, with adapters merged "
            "(`model.merge_and_unload()`)"
        )
    name = first_quantized(model)
    if name is None:
        return
    # What torchao made of a pruned model is saved; a dense model is transformers' to save, by a TorchAoConfig.
    kind = type(model.get_parameter(name).data)
    pruned = formats_of(model) or masked_layers(model) or stacks(model)
    if not kind.__module__.startswith("torchao.") or not pruned:
        raise InputError(f"{name} is quantised ({kind.__name__}): save first, quantise what you load")
    if format is not None:
        raise InputError(f"{name} is quantised ({kind.__name__}), so pairs keep their format: leave format out")


@contextmanager
def _stamped(model: PreTrainedModel) -> Iterator[str]:
    """Inside the block `model.save_pretrained` writes the yielded id into the weights' metadata."""
    from sieve.checkpoint.stamp import Stamp

    identity = os.urandom(16).hex()
    if getattr(model, "hf_quantizer", None) is not None:
        # Another library's quantizer writes metadata of its own.
        yield identity
        return
    model.hf_quantizer = Stamp({"sieve": identity, "checksums": f"{CHECKSUMS} {identity}"})
    try:
        yield identity
    finally:
        del model.hf_quantizer
