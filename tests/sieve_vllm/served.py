"""One layer of vLLM on a CPU, as one rank of tensor parallelism has it."""

from torch import nn

from sieve.nn.low_rank import PivotedLinear
from sieve.nn.narrow import NarrowLinear

PACKED = {"qkv_proj": ["q_proj", "k_proj", "v_proj"], "gate_up_proj": ["gate_proj", "up_proj"]}


def entry(layer):
    """What `config.json` says of a layer."""
    if type(layer) is nn.Linear:
        return {"format": "dense"}
    bias = {"bias": True} if layer.bias is not None else {}
    if type(layer) is NarrowLinear:
        return {"format": "narrow", "inputs": layer.in_features, "outputs": layer.out_features, **bias}
    kind = "pivoted_pair" if type(layer) is PivotedLinear else "pair"
    return {"format": kind, "rank": layer.rank, **bias}


def served(monkeypatch, make, name, layers, rank, size, through_loader=False):
    """The layer of vLLM of one rank, filled with what a checkpoint has of `layers` (shard → layer)."""
    from vllm.model_executor import parameter
    from vllm.model_executor.layers import linear
    from vllm.model_executor.layers.quantization import get_quantization_config

    for module in (linear, parameter):
        monkeypatch.setattr(module, "get_tensor_model_parallel_rank", lambda: rank)
        monkeypatch.setattr(module, "get_tensor_model_parallel_world_size", lambda: size)
    names = [name] if len(layers) == 1 else PACKED[name]
    described = dict(zip((f"block.{one}" for one in names), map(entry, layers.values()), strict=True))
    config = get_quantization_config("sieve").from_config({"version": 2, "layers": described})
    config.packed_modules_mapping = PACKED
    layer = make(quant_config=config, prefix=f"block.{name}")
    for shard, one in layers.items():
        for path, tensor in one.state_dict().items():
            if through_loader:
                tensor = tensor.clone()
                if shard is not None:
                    tensor.shard_id = shard
                assert list(layer.load_weights([(path, tensor)])) == [path]
                continue
            owner, _, leaf = path.rpartition(".")
            slot = getattr(layer.get_submodule(owner), leaf)
            slot.weight_loader(slot, tensor, shard) if shard is not None else slot.weight_loader(slot, tensor)
    layer.quant_method.process_weights_after_loading(layer)
    return layer
