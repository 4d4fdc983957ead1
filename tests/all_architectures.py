"""Tiny random models of every causal architecture of the installed transformers: its own configuration, shrunk by name.

from tests.all_architectures import ARCHITECTURES, tiny_random
model = tiny_random("falcon")
"""

import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from sieve.calibration.collect import collect
from sieve.calibration.gradients import backward
from sieve.calibration.text import Sample, batches
from sieve.checkpoint.folder import load, save
from sieve.compression.apply import apply_
from sieve.compression.low_rank.project import project
from sieve.compression.plan import Plan
from sieve.errors import SieveError
from sieve.evaluation.likelihood import EVERYTHING, Continuation, score
from sieve.evaluation.shortcuts import verified
from sieve.models.linears import left_dense, prunable, summary
from sieve.models.loading import evaluating, quiet_transformers
from tests.tiny_models import randomise_, tiny_tokenizer, tiny_tokens

ARCHITECTURES = tuple(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
LARGEST = 5_000_000  # most parameters of a tiny model

# The configurations' names for a model's sizes, and the values used here; the first name that matches counts.
SIZES = (
    (r"(decoder_|unpadded_)?vocab_size(_per_layer_input)?", 128),
    (
        r"max_position_embeddings|n_positions|n_ctx|max_seq_len|model_max_length|context_length|max_target_positions",
        256,
    ),
    (r"original_max_position_embeddings", 128),
    (r"num_(hidden_|decoder_|encoder_)?layers|n_layers?|(decoder|encoder)_layers|num_blocks", 4),
    (r"hidden_size|d_model|n_embd|emb_dim|embedding_dim|word_embed_proj_dim|embedding_size|lru_width", 32),
    (r"(input|output)_embedding_size", 32),
    (r"num_(attention_|decoder_attention_|encoder_attention_)?heads|n_heads?|(en|de)coder_attention_heads", 4),
    (r"attention_heads|swa_num_attention_heads", 4),
    (r"(swa_)?num_key_value_heads|num_kv_heads|num_query_groups", 2),
    (r"(\w+_)?intermediate_size(_mlp)?|\w*ffn_dim|(expert_)?ffn_hidden_size|dff|dim_ff|d_inner|feed_forward_size", 72),
    (r"(swa_|attention_)?head_dim|dim_head|d_head|kv_channels|attention_head_size|rotary_dim", 8),
    (r"qk_rope_head_dim|qk_nope_head_dim|v_head_dim|index_head_dim", 8),
    (r"qk_head_dim", 16),
    (r"q_lora_rank|kv_lora_rank|o_lora_rank|hc_lowrank", 16),
    (r"num_(local_|routed_)?experts|n_routed_experts|moe_num_experts", 4),
    (r"num_experts_per_tok(en)?|moe_k|moe_topk|n_group|topk_group|num_expert_group", 1),
    (r"mamba_(n|num)_heads|n_mamba_heads", 8),
    (r"mamba_d_head|mamba_headdim|mamba_head_dim", 8),
    (r"mamba_d_state|state_size|ssm_state_size", 16),
    (r"linear_num_(key|value)_heads|linear_num_heads|index_n_heads", 4),
    (r"linear_(key_|value_)?head_dim", 8),
    (r"(mamba_)?chunk_size|sliding_window(_size)?|attention_chunk_size|local_attention(_window_len)?", 32),
)
UNSET = ("head_dim", "n_routed_experts")  # some configurations leave them to the checkpoint

# What the names do not determine: the kinds of blocks, and sizes that must fit each other.
HYBRID = ["linear_attention", "full_attention"] * 2
OWN: dict[str, dict[str, Any]] = {
    "bailing_hybrid": {"layer_types": HYBRID, "layer_group_size": 2},
    "bamba": {"attn_layer_indices": [1]},
    "cohere_compass_text": {"rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0}},
    "deepseek_v2": {"topk_group": 1, "n_group": 1, "num_experts_per_tok": 2},
    "dots1": {"num_experts_per_tok": 2, "moe_intermediate_size": 40, "n_shared_experts": 1},
    "falcon_h1": {"mamba_d_ssm": 64},
    "gemma3n_text": {"num_kv_shared_layers": 1, "layer_types": ["sliding_attention", "full_attention"] * 2},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "granitemoehybrid": {"layer_types": HYBRID},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "mamba_dt_rank": 4},
    "kimi_linear": {"layer_types": HYBRID},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "longcat_flash": {"moe_topk": 2},
    "mamba2": {"num_heads": 8, "time_step_rank": 4, "n_groups": 1},
    "nemotron": {"head_dim": 8},
    "reformer": {"attn_layers": ["local", "lsh"] * 2, "axial_pos_shape": [16, 16],
                 "axial_pos_embds_dim": [16, 16]},
    "roc_bert": {"pronunciation_embed_dim": 16, "shape_embed_dim": 16, "shape_vocab_size": 64},
    "xlstm": {"qk_dim_factor": 1.0},
    "xmod": {"default_language": "en_XX"},
    "zamba": {"layers_block_type": ["linear_attention", "hybrid"] * 2, "attention_hidden_size": 64,
              "attention_head_dim": 16, "n_mamba_heads": 2, "mamba_dt_rank": 4},
    "zamba2": {"layers_block_type": ["linear_attention", "hybrid"] * 2, "hybrid_layer_ids": [1, 3],
               "attention_hidden_size": 64, "attention_head_dim": 16},
}  # fmt: skip


def tiny_config(name: str) -> PretrainedConfig:
    """The configuration of an architecture, by its model type, at small sizes."""
    return _shrunk(CONFIG_MAPPING[name], OWN.get(name, {}))


def tiny_random(name: str, seed: int = 0) -> PreTrainedModel:
    """A random model of it in eval mode; equal seeds give equal weights.

    Raises: whatever transformers raises where its parts do not fit at these sizes; ValueError for one that is large.
    """
    config = tiny_config(name)
    with torch.device("meta"):
        size = sum(parameter.numel() for parameter in AutoModelForCausalLM.from_config(config).parameters())
    if size > LARGEST:
        raise ValueError(f"{size:,} parameters at the sizes that are known by name")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return randomise_(AutoModelForCausalLM.from_config(config)).eval()


@dataclass(frozen=True)
class Outcome:
    """How Sieve handles an architecture: pruned, pruned in part, refused, scored wrongly or not built here; and why."""

    result: str
    detail: str = ""


def outcome(name: str, folder: Path) -> Outcome:
    """Score, prune, save, load and compare a tiny random model, in an empty folder.

    Raises: AssertionError if the stored model differs from the pruned one.
    """
    # Build a dense model and read it back. An architecture may fail in its own way, so every error counts.
    try:
        model = tiny_random(name)
        _logits(model)
    except Exception as error:
        return Outcome("not built here", f"{type(error).__name__}: {_short(error)}")
    try:
        save(model, tiny_tokenizer(), folder / "dense")
        model = load(folder / "dense")[0]
        matrices = prunable(model, pivoted=True)
    except SieveError as error:
        return Outcome("refused", _short(error).replace(str(folder / "dense"), "the folder"))

    # Scores must equal those without shortcuts.
    try:
        _check_scores(model)
    except SieveError as error:
        return Outcome("refused", _short(error))
    except Exception as error:
        return Outcome("scored wrongly", _short(error))

    # What stays dense, and whether gradients, which searches and loss-aware projections use, can be taken.
    left = summary(left_dense(model), matrices)
    result = "pruned in part" if left else "pruned"
    texts = list(batches([Sample(ids, 20) for ids in tiny_tokens(16, 24).tolist()], 256))
    try:
        with evaluating(model):
            backward(model, texts[0])
    except SieveError as error:
        left.append(_short(error))

    # A plan in the elastic model and applied must agree, and leaving the elastic model must restore the dense one.
    statistics = collect(model, texts)
    factors = project(model, statistics, pivot=True)
    plan = Plan.uniform(matrices.values(), 0.6)
    dense = _logits(model)
    with factors.elastic(model) as elastic:
        elastic.set_plan(plan)
        expected = _logits(model)
    _same(_logits(model), dense, 0)
    apply_(model, factors, plan)
    pruned = _logits(model)
    _same(pruned, expected, 2e-3)  # same maps, other factors: recurrences amplify rounding
    assert not torch.allclose(pruned, dense, atol=1e-3), "pruning changed nothing"

    # The saved model, loaded by Sieve and by transformers, must equal the pruned one.
    save(model, tiny_tokenizer(), folder / "pruned")
    with quiet_transformers():
        loaded = load(folder / "pruned")[0]
        plain = AutoModelForCausalLM.from_pretrained(folder / "pruned")
    _same(_logits(loaded), pruned, 1e-5)
    _same(_logits(plain.eval()), pruned, 1e-5)
    return Outcome(result, "; ".join(left))


def row(name: str, one: Outcome) -> str:
    """Of the table in docs/families.md."""
    return f"| {name} | {one.result} | {one.detail.replace('|', '/').replace('*', chr(92) + '*')} |"


@contextmanager
def at_most(seconds: int) -> Iterator[None]:
    """Raise TimeoutError in the main thread after this many seconds."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"took longer than {seconds} s")

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)


def _check_scores(model: PreTrainedModel) -> None:
    """Compare scores with one plain pass per sequence: common prompts, choices of one or more tokens."""
    tokens = tiny_tokens(6, 20).tolist()
    questions = [
        [Continuation([*tokens[0][:8], *row[:12], *tokens[5][:length]], 20) for length in (1, 3)] for row in tokens[1:5]
    ]
    sharing = verified(model, questions, EVERYTHING)
    with evaluating(model):
        found, _ = score(model, questions, 256, "scores", sharing)
    for question, scores in zip(questions, found, strict=True):
        for (ids, start), value in zip(question, scores, strict=True):
            with torch.no_grad():
                logprobs = model(input_ids=torch.tensor([ids])).logits[0].float().log_softmax(-1)
            naive = sum(float(logprobs[place - 1, ids[place]]) for place in range(start, len(ids)))
            assert abs(naive - value) <= 1e-3 * max(1.0, abs(naive)), "scores differ from plain evaluation"


@torch.no_grad()
def _logits(model: PreTrainedModel) -> torch.Tensor:
    return model(input_ids=tiny_tokens()).logits.float()


def _same(found: torch.Tensor, expected: torch.Tensor, most: float) -> None:
    error = float((found - expected).abs().max() / expected.abs().max().clamp(min=1))
    assert error <= most, f"logits differ by {error:.1e}"


def _short(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 240 else f"{text[:239]}…"


def _shrunk(kind: type[PretrainedConfig], own: dict[str, Any]) -> PretrainedConfig:
    small: dict[str, Any] = {}
    default = kind()
    for key, value in vars(default).items():
        if isinstance(value, PretrainedConfig):
            other = {} if "text" in key else {"num_hidden_layers": 3}  # none that could be taken for the decoder's
            small[key] = _shrunk(type(value), {name: n for name, n in other.items() if hasattr(value, name)}).to_dict()
        elif key.endswith("_token_id") and isinstance(value, int):
            small[key] = {"pad_token_id": 0, "bos_token_id": 1}.get(key, 2)
        elif key in UNSET or (isinstance(value, int | list) and not isinstance(value, bool)):
            size = next((size for names, size in SIZES if re.fullmatch(names, key)), None)
            if size is not None:
                small[key] = size
    if small.keys() >= {"num_key_value_heads", "num_attention_heads", "kv_lora_rank"}:
        small["num_key_value_heads"] = small["num_attention_heads"]
    small |= {key: True for key in ("is_decoder", "causal") if hasattr(default, key)}  # for models like BERT
    return kind(**{**small, **own})


if __name__ == "__main__":
    print("| architecture | | what stays dense, or why |\n|---|---|---|")
    for architecture in ARCHITECTURES:
        with TemporaryDirectory() as place, at_most(120):
            print(row(architecture, outcome(architecture, Path(place))), flush=True)
