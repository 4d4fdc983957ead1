"""Layers over the kernels: the low-rank pair that replaces a pruned matrix."""

from collections.abc import Sequence

import torch
from torch import nn

from sieve.nn.patching import is_untouched
from sieve_kernels import lowrank_linear, lowrank_linear_group, lowrank_linear_pivoted


class LowRankLinear(nn.Module):
    """y = (x Aᵀ) Bᵀ + bias, in place of `nn.Linear(in_features, out_features)`.

    `A` (in → rank, no bias) and `B` (rank → out) are plain `nn.Linear` children, so that adapters,
    quantisers and checkpoints treat them like any other layer. The fused operator serves only while both
    are exactly that; once a library has wrapped, quantised or hooked one of them, it is called as a module.

    Args: in_features n, out_features m, rank r with 1 ≤ r. Weights: A.weight [r, n], B.weight [m, r].
    """

    def __init__(self, in_features: int, out_features: int, rank: int, bias: bool = True, device=None, dtype=None):
        super().__init__()
        if rank < 1:
            raise ValueError(f"rank must be at least 1, got {rank}")
        self.in_features, self.out_features, self.rank = in_features, out_features, rank
        self.A = nn.Linear(in_features, rank, bias=False, device=device, dtype=dtype)
        self.B = nn.Linear(rank, out_features, bias=bias, device=device, dtype=dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [..., n] → y [..., m]."""
        y = _of_group(self, x)
        if y is not None:
            return y
        tensors = self.tensors()
        return self.B(self.A(x)) if tensors is None else lowrank_linear(x, *tensors)

    def tensors(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None] | None:
        """A [r, n], B [m, r] and bias [m]; None if something was done to the layers that hold them."""
        A, B = _plain_parameters(self._modules["A"]), _plain_parameters(self._modules["B"])
        return (A["weight"], B["weight"], B["bias"]) if A and B else None

    @property
    def weight(self) -> torch.Tensor:
        """B A [m, n], multiplied at each reading: for code that reads the weight of a layer it does not call."""
        return self.B.weight @ self.A.weight

    @property
    def bias(self) -> torch.Tensor | None:
        """[m]."""
        return self.B.bias

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, rank={self.rank}"


class PivotedLinear(nn.Module):
    """z = x Aᵀ, y[..., permutation] = [z, z Cᵀ], plus bias: a low-rank pair of which r outputs are z itself.

    The same map as a `LowRankLinear` of its rank in r² fewer parameters. `A` (in → rank) and `C` (rank → out - rank)
    are plain `nn.Linear` children without bias, under the rule of `LowRankLinear`: wrapped, quantised or hooked, they
    are called as modules.

    Args: in_features n, out_features m, rank r with 1 ≤ r ≤ m. Weights: A.weight [r, n], C.weight [m - r, r], bias [m];
        permutation [m] int64, a buffer that is saved: where in y each of [z, z Cᵀ] goes.
    """

    def __init__(self, in_features: int, out_features: int, rank: int, bias: bool = True, device=None, dtype=None):
        super().__init__()
        if not 1 <= rank <= out_features:
            raise ValueError(f"rank must be between 1 and {out_features}, got {rank}")
        self.in_features, self.out_features, self.rank = in_features, out_features, rank
        self.A = nn.Linear(in_features, rank, bias=False, device=device, dtype=dtype)
        self.C = nn.Linear(rank, out_features - rank, bias=False, device=device, dtype=dtype)
        self.bias = nn.Parameter(torch.zeros(out_features, device=device, dtype=dtype)) if bias else None
        self.register_buffer("permutation", torch.arange(out_features, device=device))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [..., n] → y [..., m]."""
        y = _of_group(self, x)
        if y is not None:
            return y
        tensors = self.tensors()
        if tensors is not None:
            return lowrank_linear_pivoted(x, *tensors)
        z = self.A(x)
        y = torch.cat([z, self.C(z)], -1).index_select(-1, torch.argsort(self.permutation))
        return y if self.bias is None else y + self.bias

    def tensors(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None] | None:
        """A [r, n], C [m - r, r], permutation and bias [m]; None if something was done to the layers of A and C."""
        A, C = _plain_parameters(self._modules["A"]), _plain_parameters(self._modules["C"])
        return (A["weight"], C["weight"], self._buffers["permutation"], self.bias) if A and C else None

    @property
    def weight(self) -> torch.Tensor:
        """The whole matrix [m, n], multiplied at each reading, as that of `LowRankLinear`."""
        rows = torch.cat([self.A.weight, self.C.weight @ self.A.weight])
        return rows[torch.argsort(self.permutation)]

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, rank={self.rank}"


PAIRS = (LowRankLinear, PivotedLinear)
"""The layers that a pruned matrix can be."""


class Group:
    """Pairs of one kind that read one input: the first to be asked for its output computes those of all.

    Inside `with` the pairs hand out what was computed for them; afterwards nothing is left. An output is handed out
    once, and for the very input that it was computed from, as long as that was not changed in place: every other
    call of a pair computes by itself.
    """

    def __init__(self, pairs: Sequence[nn.Module], tensors: Sequence[Sequence[torch.Tensor | None]]):
        self._pairs, self._tensors = pairs, tensors
        self._input: torch.Tensor | None = None
        self._version: int | None = None
        self._outputs: list[torch.Tensor | None] = []

    @classmethod
    def of(cls, layers: Sequence[nn.Module]) -> "Group | None":
        """A group of these layers; None if they are not pairs of one kind, or if something was done to one of them."""
        kind = type(layers[0])
        if kind not in PAIRS or not all(type(layer) is kind and is_untouched(layer) for layer in layers):
            return None
        tensors = [layer.tensors() for layer in layers]
        return None if None in tensors else cls(layers, tensors)

    def __enter__(self) -> None:
        for pair in self._pairs:
            pair.__dict__["group"] = self

    def __exit__(self, *_) -> None:
        for pair in self._pairs:
            pair.__dict__.pop("group", None)

    def output(self, pair: nn.Module, x: torch.Tensor) -> torch.Tensor | None:
        """y [..., m] of x [..., n]; None if it is not here."""
        if self._input is None:
            self._input, self._version = x, _version(x)
            self._outputs = list(self._compute(x))
        elif self._input is not x or self._version != _version(x):
            return None
        index = self._pairs.index(pair)
        y, self._outputs[index] = self._outputs[index], None
        return y

    def _compute(self, x: torch.Tensor) -> Sequence[torch.Tensor]:
        As, Bs, *permutations, biases = zip(*self._tensors, strict=True)
        if all(bias is None for bias in biases):
            biases = None
        return lowrank_linear_group(x, As, Bs, biases, *permutations)


def _of_group(pair: nn.Module, x: torch.Tensor) -> torch.Tensor | None:
    group = pair.__dict__.get("group")
    return None if group is None else group.output(pair, x)


def _version(x: torch.Tensor) -> int | None:
    """Counts changes in place; None in inference mode, which does not count them."""
    return None if x.is_inference() else x._version


def _plain_parameters(layer: nn.Module) -> dict[str, nn.Parameter | None] | None:
    """Weight and bias of an untouched nn.Linear; None of anything else: a subclass, a wrapper, one that holds a tensor
    subclass, has a hook or a patched forward."""
    if type(layer) is nn.Linear and holds_plain_tensors(layer) and is_untouched(layer):
        return layer._parameters
    return None


def holds_plain_tensors(layer: nn.Linear) -> bool:
    """Whether weight and bias are ordinary parameters, not a quantiser's or a wrapper's tensors."""
    # Looked up where they are: every layer asks on every call, and attributes of a module take their time.
    own = layer.__dict__
    parameters = own["_parameters"]
    weight, bias = parameters.get("weight"), parameters.get("bias", 0)
    return (
        type(weight) is nn.Parameter  # whose data are an ordinary tensor: other data make another class of it
        and (bias is None or type(bias) is nn.Parameter)
        and "weight" not in own
    )
