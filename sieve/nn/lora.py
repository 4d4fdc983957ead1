"""LoRA adapters of peft on pruned matrices, as `LoraConfig(target_modules=["q_proj", "v_proj"])` asks for them.

An adapter reads the input of a matrix and adds to its output, whatever form the matrix is stored in. Merging an adapter
of rank ρ into a pair of rank r makes a pair of rank r + ρ, which is the same map exactly; unmerging takes its columns
away again. Members of a stack merge into the rows of the stack that are theirs.

This module imports peft: `sieve.checkpoint.adapters` imports it once peft is loaded.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from peft.tuners.lora.layer import Linear
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from torch import nn

from sieve.errors import InputError, NumericsError
from sieve.nn.formats.base import format_of
from sieve.nn.low_rank import PAIRS, LowRankLinear
from sieve.nn.stacked import StackedOutput

TARGETS = (*PAIRS, StackedOutput)
"""The layers that peft does not know and that `PrunedLoraLinear` adapts."""

_INITS = (True, False, "gaussian", "orthogonal")  # those that leave the base weight as it is


class PrunedLoraLinear(Linear):
    """peft's LoRA layer on a pair, or on a member of a stack: y = base(x) + scaling · (x Aᵀ) Bᵀ, DoRA too."""

    fan_in_fan_out = property(lambda self: False, lambda self, value: None)  # GPT-2's pairs are not transposed

    def __init__(self, base_layer: nn.Module, adapter_name: str, **kwargs: Any):
        inside = [name for name, module in base_layer.named_modules() if name and isinstance(module, BaseTunerLayer)]
        if inside and not isinstance(base_layer, BaseTunerLayer):
            raise InputError(
                f"the factor {inside[0]} of a pruned matrix has an adapter already: put adapters on whole matrices "
                'or on their factors ("all-linear"), not on both'
            )
        super().__init__(base_layer, adapter_name, **kwargs)
        self._deltas: dict[str, _Delta] = {}  # as they were merged

    def _get_in_out_features(self, module: nn.Module) -> tuple[int, int]:
        return module.in_features, module.out_features

    @property
    def lora_variants(self) -> dict[tuple[str, ...], type | None]:
        return {key: variant for key, variant in super().lora_variants.items() if key in ((), ("use_dora",))}

    def update_layer(self, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        config = kwargs["config"]
        if config.init_lora_weights not in _INITS:
            raise InputError(
                f"init_lora_weights={config.init_lora_weights!r} reads or changes the base weight as one matrix, which "
                'a pruned one is not: use init_lora_weights=True, or put the adapter on the factors ("all-linear")'
            )
        try:
            super().update_layer(adapter_name, *args, **kwargs)
        except ValueError as error:
            if "variant" in str(error):
                raise InputError(f"no such adapter on a pruned matrix: {error}; LoRA and DoRA are") from None
            raise

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Make the adapters part of the pair, exactly; see `peft.tuners.lora.Linear.merge`."""
        for name in check_adapters_to_merge(self, adapter_names):
            if name in self.lora_A:
                delta = self._delta(name)
                if safe_merge and not all(part is None or torch.isfinite(part).all() for part in delta.tensors()):
                    raise NumericsError(f"the adapter {name} holds NaN or infinity: it is not merged")
                _Place.of(self).merge(name, delta)
                self._deltas[name] = delta
                self.merged_adapters.append(name)

    def unmerge(self) -> None:
        """Take all merged adapters out of the pair."""
        while self.merged_adapters:
            name = self.merged_adapters.pop()
            if name in self.lora_A:
                _Place.of(self).unmerge(name, self._deltas.pop(name))

    @torch.no_grad()
    def _delta(self, name: str) -> "_Delta":
        A, B, scaling = self.lora_A[name].weight, self.lora_B[name].weight, self.scaling[name]
        bias = self.lora_B[name].bias
        factor = None
        if name in self.lora_variant:
            if self.merged_adapters:
                raise InputError(f"DoRA scales the whole matrix: merge the adapter {name} alone, or as the first")
            base = self.get_base_layer().weight
            magnitude = self.lora_magnitude_vector[name]
            norm = magnitude.get_weight_norm(base, (scaling * B.float() @ A.float()).to(base.dtype), scaling=1)
            factor = magnitude.weight / norm
        return _Delta(A, scaling * B, None if bias is None else scaling * bias, factor)


@dataclass
class _Delta:
    """What an adapter of rank ρ adds: factor · (W + B A), and the bias. A [ρ, n], B [m, ρ], bias [m], factor [m]."""

    A: torch.Tensor
    B: torch.Tensor
    bias: torch.Tensor | None
    factor: torch.Tensor | None

    def tensors(self) -> tuple[torch.Tensor | None, ...]:
        return self.A, self.B, self.bias, self.factor

    def on_rows(self, rows: slice, height: int) -> "_Delta":
        """The same in a stack of `height` rows, of which `rows` are the member's."""

        def padded(part: torch.Tensor | None, fill: float) -> torch.Tensor | None:
            if part is None:
                return None
            whole = part.new_full((height, *part.shape[1:]), fill)
            whole[rows] = part
            return whole

        return _Delta(self.A, padded(self.B, 0), padded(self.bias, 0), padded(self.factor, 1))


class _Place:
    """Where the layer is that an adapter merges into, and which of its rows are the adapter's."""

    def __init__(self, owner: nn.Module, name: str, member: nn.Module | None = None):
        self.owner, self.name, self.member = owner, name, member
        while isinstance(getattr(self.owner, self.name), BaseTunerLayer):
            self.owner, self.name = getattr(self.owner, self.name), "base_layer"

    @classmethod
    def of(cls, adapter: PrunedLoraLinear) -> "_Place":
        base = adapter.get_base_layer()
        if isinstance(base, StackedOutput):
            return cls(base.stack.parent, base.stack.name, base)
        return cls(adapter, "base_layer")

    def merge(self, name: str, delta: _Delta) -> None:
        layer = getattr(self.owner, self.name)
        delta = self._on_rows(delta, layer)
        if layer.bias is None and delta.bias is not None:
            raise InputError(f"the adapter {name} has a bias and its matrix has none: it cannot be merged")
        if isinstance(layer, nn.Linear):  # a stack that stayed dense
            _merge_dense(layer, delta)
            return
        if not isinstance(layer, GrownPair):
            layer = GrownPair.of(layer)
            setattr(self.owner, self.name, layer)
        layer.append((self._key(), name), delta)

    def unmerge(self, name: str, delta: _Delta) -> None:
        layer = getattr(self.owner, self.name)
        delta = self._on_rows(delta, layer)
        if isinstance(layer, nn.Linear):
            _unmerge_dense(layer, delta)
            return
        layer.remove((self._key(), name), delta)
        if not layer.merged:
            setattr(self.owner, self.name, layer.ungrown())

    def _on_rows(self, delta: _Delta, layer: nn.Module) -> _Delta:
        return delta if self.member is None else delta.on_rows(self.member.rows, layer.out_features)

    def _key(self) -> int:
        return 0 if self.member is None else self.member.index


class GrownPair(LowRankLinear):
    """A pair with adapters merged into it: their columns stand behind its own, so that they can be taken away again.

    `settled` is the ordinary layer of the same map.
    """

    origin: nn.Module
    merged: list[tuple[tuple[int, str], int]]  # by whom and of what rank, in the order of the columns

    @classmethod
    def of(cls, layer: nn.Module) -> "GrownPair":
        if not isinstance(layer, PAIRS) or layer.tensors() is None:
            raise InputError(
                "a pruned matrix is quantised or wrapped: adapters cannot be merged into it; merge them into the model "
                "as it was saved, and quantise the result"
            )
        A, B, bias = format_of(layer).factors(layer)
        grown = cls(layer.in_features, layer.out_features, A.shape[0], bias is not None, device="meta")
        grown._set(A.detach().clone(), B.detach().clone(), bias, A.requires_grad)
        # Not a submodule: it is no part of the model until the adapters are taken away.
        grown.__dict__ |= {"origin": layer, "merged": []}
        return grown.train(layer.training)

    @torch.no_grad()
    def append(self, key: tuple[int, str], delta: _Delta) -> None:
        """Merge what an adapter adds; `key` names it to `remove`."""
        A, B = self.A.weight, self.B.weight
        joined = torch.cat([B, delta.B.to(B)], 1)
        if delta.factor is not None:
            joined = (delta.factor.to(B)[:, None] * joined).to(B.dtype)
        bias = self.B.bias if delta.bias is None else self.B.bias + delta.bias.to(B)
        self._set(torch.cat([A, delta.A.to(A)]), joined, bias, A.requires_grad)
        self.merged.append((key, delta.A.shape[0]))

    @torch.no_grad()
    def remove(self, key: tuple[int, str], delta: _Delta) -> None:
        """Take away what `append` merged; the others stay."""
        index = [one for one, _ in self.merged].index(key)
        end = self.rank - sum(width for _, width in self.merged[index + 1 :])
        begin = end - self.merged.pop(index)[1]
        A, B = self.A.weight, self.B.weight
        left = torch.cat([B[:, :begin], B[:, end:]], 1)
        if delta.factor is not None:
            left = (left / delta.factor.to(B)[:, None]).to(B.dtype)
        bias = self.B.bias if delta.bias is None else self.B.bias - delta.bias.to(B)
        self._set(torch.cat([A[:begin], A[end:]]), left, bias, A.requires_grad)

    def ungrown(self) -> nn.Module:
        """The layer as it was before any adapter was merged, where this one is now."""
        weight = self.A.weight
        return self.origin.to(weight.device, weight.dtype).train(self.training)

    @torch.no_grad()
    def settled(self) -> nn.Module:
        """A pair of the kind that the layer was; its rank is at most that of a whole matrix."""
        A, B, bias = self.A.weight, self.B.weight, self.B.bias
        m, n = self.out_features, self.in_features
        if self.rank > min(m, n):
            W, eye = (B.double() @ A.double()).to(A.dtype), torch.eye(min(m, n), device=A.device, dtype=A.dtype)
            A, B = (W, eye) if m <= n else (eye, W)
        format = replace(format_of(self.origin), rank=A.shape[0])
        made = format.module(m, n, bias is not None, A.device, A.dtype)
        format.fill_(made, A, B, bias)
        return made.requires_grad_(self.A.weight.requires_grad).train(self.training)

    def _set(self, A: torch.Tensor, B: torch.Tensor, bias: torch.Tensor | None, trains: bool) -> None:
        self.rank = self.A.out_features = self.B.in_features = A.shape[0]
        self.A.weight, self.B.weight = nn.Parameter(A, trains), nn.Parameter(B, trains)
        self.B.bias = None if bias is None else nn.Parameter(bias.detach().clone(), trains)


@torch.no_grad()
def _merge_dense(layer: nn.Linear, delta: _Delta) -> None:
    W = layer.weight.float() + delta.B.float() @ delta.A.float()
    layer.weight.copy_(W if delta.factor is None else delta.factor[:, None] * W)
    if delta.bias is not None:
        layer.bias += delta.bias


@torch.no_grad()
def _unmerge_dense(layer: nn.Linear, delta: _Delta) -> None:
    W = layer.weight.float() if delta.factor is None else layer.weight.float() / delta.factor[:, None]
    layer.weight.copy_(W - delta.B.float() @ delta.A.float())
    if delta.bias is not None:
        layer.bias -= delta.bias
