"""Writing a dense model as a GGUF file, by gguf-py, for llama.cpp and others; `sieve.load_model` reads it too."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sieve.checkpoint.exporters.base import Exporter
from sieve.checkpoint.multiply_out import multiply_out_, why_not_dense
from sieve.errors import InputError
from sieve.nn.formats.base import format_of
from sieve.utils.messages import shorten

if TYPE_CHECKING:
    import gguf
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
"""Model type in transformers → GGUF's name."""
# How the tokenizer splits text, without its byte-level step → GGUF's name.
_GPT2_SPLITS = {
    (): "gpt-2",
    ("Digits",): "smollm",
}
_PROBE = "The year 1234567, naïve café: 你好!  don't\n\tx = [3.14, 'a'];\n\n ελ 🙂"


def gguf_exporter(summary: str, quantised: str | None = None) -> Exporter:
    """An exporter to a file whose matrices have the model's dtype, or a type of blocks such as "Q8_0"."""

    def export(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, source: Path, output: Path) -> None:
        write_gguf(multiply_out_(model), tokenizer, source.name, output, quantised)

    return Exporter(summary, export, why_not_gguf, writes_file=True)


def why_not_gguf(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Why readers of a GGUF file would not get the same model; None: they would."""
    config = model.config
    if config.model_type not in _ARCHITECTURES:
        return f"Sieve writes {', '.join(_ARCHITECTURES)} to it, and this is a {config.model_type}"
    # Readers take these properties from the architecture's name, so a model that differs would compute other results.
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    if rope.get("rope_type", "default") != "default":
        return f"its rotary positions are scaled ({shorten(rope['rope_type'])}), which readers would not see"
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    if window and window < config.max_position_embeddings:
        return f"its attention has a window of {window} tokens"
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    read = {"qwen2": config.hidden_size // config.num_attention_heads, "qwen3": 128}.get(config.model_type, head)
    if head != read:
        return f"its heads are {head} wide, and readers take those of {config.model_type} to be {read}"
    if config.hidden_act != "silu":
        return f"its activation is {shorten(config.hidden_act)}, which readers take for silu"
    # Readers load only the tensors that the architecture has, and one MLP width for all blocks: pruned channels become
    # zeros.
    biased = [name for name, _ in model.named_parameters() if name.endswith("bias")]
    usual = ("q_proj.bias", "k_proj.bias", "v_proj.bias") if config.model_type == "qwen2" else ()
    if strange := [name for name in biased if not name.endswith(usual or ("\0",))]:
        return f"{strange[0]} is a bias that readers do not look for"
    writers = (layer.mlp.down_proj for layer in model.model.layers)
    widths = {one.in_features for one in writers if format_of(one) is None}
    if widths - {config.intermediate_size}:
        return f"its MLPs have {len(widths)} widths, but the format holds only one"
    return why_not_dense(model) or _why_no_tokenizer(model, tokenizer)


def write_gguf(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str, path: Path, quantised: str | None = None
) -> None:
    """Write a model that `why_not_gguf` accepts, with its tokenizer and chat template.

    Args:
        quantised: the type of matrices whose rows are divisible into its blocks: "Q8_0", "Q4_0" and others of gguf-py.
            Other matrices and vectors are not rounded further. Embedding and head are always "Q8_0".
    """
    import gguf

    architecture = _ARCHITECTURES[model.config.model_type]
    writer = gguf.GGUFWriter(path, architecture)
    _write_config(writer, model, name, quantised)
    _write_tokenizer(writer, model, tokenizer)
    names = gguf.get_tensor_name_map(
        next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == architecture),
        model.config.num_hidden_layers,
    )
    for ours, tensor in _tensors(model, architecture):
        theirs = names.get_name(ours, try_suffixes=(".weight", ".bias"))
        if theirs is None:
            raise InputError(f"cannot export to gguf: it has no name for {ours}")
        kind = _kind(theirs, tensor, quantised)
        writer.add_tensor(theirs, gguf.quants.quantize(tensor.float().numpy(), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _write_config(writer: gguf.GGUFWriter, model: PreTrainedModel, name: str, quantised: str | None) -> None:
    import gguf

    config = model.config
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    rope = getattr(config, "rope_parameters", None) or {}
    types = {torch.float32: "ALL_F32", torch.float16: "MOSTLY_F16", torch.bfloat16: "MOSTLY_BF16"}
    writer.add_name(name)
    writer.add_file_type(gguf.LlamaFileType[f"MOSTLY_{quantised}" if quantised else types[model.dtype]])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_rope_dimension_count(head)
    writer.add_rope_freq_base(rope.get("rope_theta") or getattr(config, "rope_theta", 10000.0))
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)


def _write_tokenizer(writer: gguf.GGUFWriter, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    described = _describe_tokenizer(model, tokenizer)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(described["pre_tokenizer_type"])
    writer.add_token_list(described["tokens"])
    writer.add_token_types(described["token_type"])
    writer.add_token_merges(described["merges"])
    for which, write in {
        "bos": writer.add_bos_token_id,
        "eos": writer.add_eos_token_id,
        "unk": writer.add_unk_token_id,
        "pad": writer.add_pad_token_id,
    }.items():
        if (token := getattr(tokenizer, f"{which}_token_id")) is not None:
            write(token)
    ids = tokenizer("a").input_ids
    writer.add_add_bos_token(bool(ids) and ids[0] == tokenizer.bos_token_id)
    if isinstance(tokenizer.chat_template, str):
        writer.add_chat_template(tokenizer.chat_template)


def _describe_tokenizer(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """The tokenizer as transformers reads it from GGUF: tokens by id, their types, merges, and how text is split."""
    import gguf

    parts = json.loads(tokenizer.backend_tokenizer.to_str())
    vocabulary = {index: token for token, index in tokenizer.get_vocab().items()}
    rows = model.get_input_embeddings().num_embeddings
    kinds = gguf.TokenType
    tokens = [vocabulary.get(index, f"[PAD{index}]") for index in range(rows)]
    types = [int(kinds.NORMAL if index in vocabulary else kinds.UNUSED) for index in range(rows)]
    for index, added in tokenizer.added_tokens_decoder.items():
        types[index] = int(kinds.CONTROL if added.special else kinds.USER_DEFINED)
    merges = [one if isinstance(one, str) else " ".join(one) for one in parts["model"]["merges"]]
    return {
        "tokenizer_type": "gpt2",
        "pre_tokenizer_type": _split_name(parts),
        "tokens": tokens,
        "token_type": types,
        "merges": merges,
    }


def _why_no_tokenizer(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> str | None:
    if not getattr(tokenizer, "is_fast", False):
        return f"its tokenizer ({type(tokenizer).__name__}) does not say how it splits text"
    parts = json.loads(tokenizer.backend_tokenizer.to_str())
    if parts["model"]["type"] != "BPE" or parts["model"].get("byte_fallback"):
        return f"Sieve writes byte-level BPE tokenizers to it, and this one is of the kind {parts['model']['type']}"
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        return "its tokenizer has more tokens than its embedding has rows"
    name = _split_name(parts)
    # GGUF files do not compose accents (NFC) as Qwen's tokenizer does: the text's writer must do it.
    if name is None or (parts.get("normalizer") or {"type": "NFC"})["type"] != "NFC":
        return "its tokenizer splits or rewrites text in a way that the format has no name for"
    if name != "smollm":
        # transformers cannot read the splitting "smollm", so only the others are tested; llama.cpp can.
        from transformers.integrations.gguf.gguf_tokenizer_mapping import convert_gguf_tokenizer

        again, _ = convert_gguf_tokenizer(model.config.model_type, _describe_tokenizer(model, tokenizer))
        plain = tokenizer(_PROBE, add_special_tokens=False).input_ids
        if again.encode(_PROBE, add_special_tokens=False).ids != plain:
            return "its tokenizer would give other tokens when it is read back"
    return None


def _split_name(parts: dict[str, Any]) -> str | None:
    """GGUF's name for how the tokenizer splits text; None if GGUF has none."""
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    step = parts["pre_tokenizer"] or {}
    steps = step.get("pretokenizers", [step])
    *before, last = steps
    if last.get("type") != "ByteLevel" or last.get("add_prefix_space"):
        return None
    if last.get("use_regex"):
        digits = all(one["type"] != "Digits" or one["individual_digits"] for one in before)
        return _GPT2_SPLITS.get(tuple(one["type"] for one in before)) if digits else None
    if len(before) == 1 and before[0]["type"] == "Split":
        pattern = before[0]["pattern"].get("Regex")
        return next(
            (name for name in ("llama-bpe", "qwen2", *GGUF_PRE_TOKENIZER_SPLITS)
             if GGUF_PRE_TOKENIZER_SPLITS.get(name) == pattern), None
        )  # fmt: skip
    return None


def _tensors(model: PreTrainedModel, architecture: str) -> Iterator[tuple[str, torch.Tensor]]:
    """Name and weight of each tensor of the file; rows of queries and keys in the order of GGUF's rotary positions."""
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    heads = {"q_proj": model.config.num_attention_heads, "k_proj": model.config.num_key_value_heads}
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and tied:
            continue
        tensor = tensor.detach().cpu()
        leaf = name.rpartition(".")[0].rpartition(".")[2]
        if architecture == "llama" and leaf in heads:
            tensor = _interleaved(tensor, heads[leaf])
        yield name, tensor


def _interleaved(tensor: torch.Tensor, heads: int) -> torch.Tensor:
    """Interleave the two halves of each head's rows, which transformers rotates together."""
    return tensor.reshape(heads, 2, -1, *tensor.shape[1:]).transpose(1, 2).reshape(tensor.shape).contiguous()


def _kind(name: str, tensor: torch.Tensor, quantised: str | None) -> gguf.GGMLQuantizationType:
    import gguf

    kinds = gguf.GGMLQuantizationType
    plain = {torch.float32: kinds.F32, torch.float16: kinds.F16, torch.bfloat16: kinds.BF16}[tensor.dtype]
    if tensor.dim() == 1:
        return kinds.F32
    if quantised is None:
        return plain
    kind = kinds.Q8_0 if name.startswith(("token_embd", "output.")) else kinds[quantised]
    block, _ = gguf.GGML_QUANT_SIZES[kind]
    return plain if tensor.shape[-1] % block else kind
