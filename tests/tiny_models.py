"""Tiny random models, one per architecture that Sieve supports: for tests where the shape matters, not the text.

    from tests.tiny_models import TINY, tiny_model
    model = tiny_model("llama")

Hidden 32, two blocks, vocabulary 128; widths differ from one another so that a swapped dimension shows.
"""

from collections.abc import Callable

import torch
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
    Qwen2Config,
    Qwen3Config,
)

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

    Biases and norm weights are random too (transformers initialises them to 0 and 1), so that a lost one shows.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(TINY[name]())
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() == 1:
                    parameter.add_(0.1 * torch.randn_like(parameter))
    return model.to(dtype).eval()


def tiny_tokens(rows: int = 2, length: int = 12, seed: int = 0) -> torch.Tensor:
    """Random token ids [rows, length], special tokens left out."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, VOCABULARY, (rows, length), generator=generator)
