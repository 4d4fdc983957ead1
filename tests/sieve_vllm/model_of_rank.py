"""Whole models of vLLM on a CPU, one process for each rank of tensor parallelism:

    python model_of_rank.py RANK SIZE PORT OUT FOLDER…

loads each folder as vLLM does and writes the logits of IDS, [folders, T, vocabulary], to OUT. Ranks exchange numbers by
gloo. Attention is torch's, since vLLM's needs its own cache and kernels; everything else is vLLM's.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "packages" / "sieve-vllm"))

import sieve_vllm
import torch
from torch import nn
from vllm.config import DeviceConfig, LoadConfig, ModelConfig, VllmConfig, set_current_vllm_config
from vllm.distributed import parallel_state
from vllm.forward_context import set_forward_context
from vllm.model_executor.model_loader import get_model_loader
from vllm.model_executor.model_loader.utils import (
    get_model_architecture,
    initialize_model,
    process_weights_after_loading,
)

IDS = torch.arange(3, 15)
VOCABULARY = 128


class CausalAttention(nn.Module):
    """q [T, heads · size], k and v [T, kv heads · size] → [T, heads · size], for one text."""

    def __init__(self, heads, size, scale=None, num_kv_heads=None, **more):
        super().__init__()
        self.heads, self.kv_heads, self.size, self.scale = heads, num_kv_heads or heads, size, scale

    def forward(self, q, k, v):
        q, k, v = (
            x.reshape(-1, heads, self.size).transpose(0, 1)
            for x, heads in ((q, self.heads), (k, self.kv_heads), (v, self.kv_heads))
        )
        y = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=self.scale, enable_gqa=True)
        return y.transpose(0, 1).flatten(1)


@torch.no_grad()
def logits_of(folder: str) -> torch.Tensor:
    model_config = ModelConfig(model=folder, dtype="float32", enforce_eager=True)
    config = VllmConfig(device_config=DeviceConfig("cpu"), model_config=model_config)
    config.compilation_config.custom_ops = ["none"]  # the kernels of these are CUDA's
    with set_current_vllm_config(config), set_forward_context(None, config):
        architecture, _ = get_model_architecture(model_config)
        for kind in architecture.__mro__:
            if hasattr(module := sys.modules[kind.__module__], "Attention"):
                module.Attention = CausalAttention
        model = initialize_model(config)
        get_model_loader(LoadConfig()).load_weights(model, model_config)
        process_weights_after_loading(model, model_config, torch.device("cpu"))
        hidden = model(IDS, torch.arange(len(IDS)), None, None)
        return model.compute_logits(hidden)[:, :VOCABULARY]


def main(rank: str, size: str, port: str, out: str, *folders: str) -> None:
    sieve_vllm.register()
    address = f"tcp://127.0.0.1:{port}"
    parallel_state.init_distributed_environment(int(size), int(rank), address, 0, "gloo")
    with set_current_vllm_config(VllmConfig(device_config=DeviceConfig("cpu"))):
        parallel_state.initialize_model_parallel(int(size), backend="gloo")
    logits = torch.stack([logits_of(folder) for folder in folders])
    if int(rank) == 0:
        torch.save(logits, out)


if __name__ == "__main__":
    main(*sys.argv[1:])
