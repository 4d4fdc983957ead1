"""Tiny random models, one per architecture that Sieve supports, for tests that need structure but no meaningful text.

    from tests.tiny_models import TINY, tiny_model, tiny_tokenizer
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()

Hidden 32, two blocks, vocabulary 128; widths differ from one another so that a swapped dimension shows.
"""

from collections.abc import Callable, Iterable

import torch
from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers.models import BPE, WordLevel
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    GemmaConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    Phi3Config,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

from sieve.models.linears import layer_in, prunable, replace
from sieve.nn.formats.pivoted_pair import pair_format
from sieve.nn.fuse import fuse_
from sieve.nn.narrow import NarrowLinear

VOCABULARY = 128
_LENGTH = 256

_TOKENS = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
_LLAMA_LIKE = {
    **_TOKENS,
    "hidden_size": 32,
    "intermediate_size": 72,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": _LENGTH,
}

TINY: dict[str, Callable[[], PretrainedConfig]] = {
    "llama": lambda: LlamaConfig(**_LLAMA_LIKE, tie_word_embeddings=True),
    "qwen2": lambda: Qwen2Config(**_LLAMA_LIKE, tie_word_embeddings=False),
    "qwen3": lambda: Qwen3Config(**_LLAMA_LIKE, head_dim=12, tie_word_embeddings=True),
    "mistral": lambda: MistralConfig(**_LLAMA_LIKE, head_dim=8, sliding_window=None),
    "phi3": lambda: Phi3Config(**_LLAMA_LIKE),
    "gemma": lambda: GemmaConfig(**_LLAMA_LIKE, head_dim=12),
    "gpt2": lambda: GPT2Config(**_TOKENS, n_embd=32, n_inner=72, n_layer=2, n_head=4, n_positions=_LENGTH),
    "opt": lambda: OPTConfig(
        **_TOKENS,
        hidden_size=32,
        word_embed_proj_dim=32,
        ffn_dim=72,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=_LENGTH,
    ),
    "gpt_neox": lambda: GPTNeoXConfig(
        **_TOKENS,
        hidden_size=32,
        intermediate_size=72,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=_LENGTH,
    ),
}


def tiny_model(name: str, seed: int = 0, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A random model of the architecture `name`, in eval mode on the CPU; equal seeds give equal weights.

    Weights are seven times as large as transformers makes them, and biases and norm weights are random (it makes them
    0 and 1), so that every layer has its part in the output and a lost or wrong one shows.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = randomise_(AutoModelForCausalLM.from_config(TINY[name]()))
    return _cast(model, dtype)


@torch.no_grad()
def randomise_(model: PreTrainedModel) -> PreTrainedModel:
    """Make every parameter count, as `tiny_model` says."""
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.add_(0.1 * torch.randn_like(parameter))
        else:
            parameter.mul_(7)
    return model


def tiny_tokens(rows: int = 2, length: int = 12, seed: int = 0) -> torch.Tensor:
    """Random token ids [rows, length], special tokens left out."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, VOCABULARY, (rows, length), generator=generator)


def tiny_pruned(name: str, seed: int = 0, dtype: torch.dtype = torch.float32, pivoted: bool = False) -> PreTrainedModel:
    """`tiny_model` with two of every three prunable matrices replaced by random pairs of ranks 4 to 8."""
    model = tiny_model(name, seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for i, matrix in enumerate(prunable(model)):
            if i % 3 != 1:
                layer = model.get_submodule(matrix)
                pair = layer_in(pair_format(pivoted)(4 + i % 5), layer)
                if pivoted:
                    pair.permutation.copy_(torch.randperm(pair.out_features))
                if layer.bias is not None:
                    (pair if pivoted else pair.B).bias.data.copy_(layer.bias)
                replace(model, matrix, pair)
    return fuse_(_cast(model, dtype))


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """One token per ASCII character, its code being its id; <pad> 0, <s> 1 and </s> 2 stand for control characters."""
    special = {"<pad>": 0, "<s>": 1, "</s>": 2}
    characters = {chr(code): code for code in range(len(special), VOCABULARY)}
    tokenizer = Tokenizer(WordLevel({**special, **characters}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="?"
    )


def tiny_bpe(corpus: Iterable[str], size: int = 400) -> PreTrainedTokenizerFast:
    """A byte-level byte-pair encoding, learned from some texts; <pad> is 0, <s> 1 and </s> 2."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet, special = pre_tokenizers.ByteLevel.alphabet(), ["<pad>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=alphabet, special_tokens=special, show_progress=False
    )
    tokenizer.train_from_iterator(corpus, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


def _cast(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """The parameters, not the buffers: as `from_pretrained` does, which leaves the rotary frequencies in float32."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    model.config.dtype = dtype
    return model.eval()


def narrow_(mlp: nn.Module, width: int) -> None:
    """Leave an MLP its first channels, in the layers that saved folders name."""
    for name in ("gate_proj", "up_proj", "down_proj"):
        weight = getattr(mlp, name).weight.detach()
        kept = weight[:, :width] if name == "down_proj" else weight[:width]
        layer = NarrowLinear(kept.shape[1], kept.shape[0], bias=False)
        layer.load_state_dict({"weight": kept})
        setattr(mlp, name, layer)
