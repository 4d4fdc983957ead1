"""Linear layers that read one input as one layer, and the modules that hand out its parts in their places."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import nn

from sieve.errors import InputError

Model = TypeVar("Model", bound=nn.Module)


def stack_name(members: Sequence[str]) -> str:
    """q_proj, k_proj, v_proj → qkv_proj; gate_proj, up_proj → gate_up_proj."""
    stems, _, endings = zip(*(name.rpartition("_") for name in members), strict=True)
    if len(set(endings)) > 1:
        return "_".join(members)
    return f"{('' if max(map(len, stems)) == 1 else '_').join(stems)}_{endings[0]}"


def stack_(model: Model, groups: Mapping[str, Sequence[str]]) -> Model:
    """Stack these groups, dotted name of the stack → names of its members beside it, in place; returns the model.

    Raises: InputError naming a member that is no linear layer, or that reads another width than the first.
    """
    modules = dict(model.named_modules())
    for name, members in groups.items():
        path, _, short = name.rpartition(".")
        parent = modules.get(path)
        layers = [getattr(parent, member, None) for member in members]
        for member, layer in zip(members, layers, strict=True):
            if type(layer) is not nn.Linear or layer.in_features != layers[0].in_features:
                raise InputError(f"{path}.{member} is no linear layer of the width of those that it is to be one with")
        stack = _Stack(parent, short, list(members), [layer.out_features for layer in layers])
        parts = {member: StackedOutput(stack, index) for index, member in enumerate(members)}
        children = dict(parent.named_children())
        for child in children:
            delattr(parent, child)
        for child, module in children.items():  # the stack before its members: in the order of execution
            if child == members[0]:
                parent.add_module(short, _joined(layers))
            parent.add_module(child, parts.get(child, module))
    return model


def stacks(model: nn.Module) -> dict[str, list[str]]:
    """Dotted name of each stack → the names of its members beside it."""
    return {name: stack.members for name, stack in _stacks(model).items()}


def member_out_features(model: nn.Module) -> dict[str, list[int]]:
    """Dotted name of each stack → how many outputs each of its members has."""
    return {name: stack.sizes for name, stack in _stacks(model).items()}


def _stacks(model: nn.Module) -> dict[str, "_Stack"]:
    firsts = (pair for pair in model.named_modules() if isinstance(pair[1], StackedOutput) and pair[1].index == 0)
    return {f"{name.rpartition('.')[0]}.{first.stack.name}": first.stack for name, first in firsts}


class StackedOutput(nn.Module):
    """A member of a stack, in the place of its linear layer: x [..., n] → its rows of the stack's output [..., m]."""

    def __init__(self, stack: "_Stack", index: int):
        super().__init__()
        self.stack, self.index = stack, index

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.stack.output(x, self.index)

    @property
    def rows(self) -> slice:
        """Those of the stack that are this member's."""
        begin = sum(self.stack.sizes[: self.index])
        return slice(begin, begin + self.out_features)

    @property
    def in_features(self) -> int:
        return self.stack.layer.in_features

    @property
    def out_features(self) -> int:
        return self.stack.sizes[self.index]

    @property
    def weight(self) -> torch.Tensor:
        """[m, n], multiplied anew at each reading where the stack is a pair."""
        return self.stack.layer.weight[self.rows]

    @property
    def bias(self) -> torch.Tensor | None:
        """[m]."""
        bias = self.stack.layer.bias
        return None if bias is None else bias[self.rows]

    def extra_repr(self) -> str:
        return f"of {self.stack.name}"


class _Stack:
    """What the members of a stack have in common: where its layer is, and outputs not yet asked for.

    The layer is looked up at each call, since pruning and searching put others in its place.
    """

    def __init__(self, parent: nn.Module, name: str, members: list[str], sizes: list[int]):
        self.parent, self.name, self.members, self.sizes = parent, name, members, sizes
        self._input: torch.Tensor | None = None
        self._outputs: list[torch.Tensor | None] = []

    @property
    def layer(self) -> nn.Module:
        return getattr(self.parent, self.name)

    def output(self, x: torch.Tensor, index: int) -> torch.Tensor:
        """The first member to be asked has all outputs computed; the last one leaves nothing behind."""
        if self._input is not x or self._outputs[index] is None:
            self._input = x
            self._outputs = list(self.layer(x).split(self.sizes, -1))
        y, self._outputs[index] = self._outputs[index], None
        if all(output is None for output in self._outputs):
            self._input = None
        return y

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_input": None, "_outputs": []}  # a copy begins anew


def _joined(layers: list[nn.Linear]) -> nn.Linear:
    """One layer with the rows of all; it has a bias if one of them has."""
    first = layers[0]
    biased = any(layer.bias is not None for layer in layers)
    heights = sum(layer.out_features for layer in layers)
    joined = nn.Linear(first.in_features, heights, biased, device="meta", dtype=first.weight.dtype)
    joined.weight = nn.Parameter(
        torch.cat([layer.weight.detach() for layer in layers]), requires_grad=first.weight.requires_grad
    )
    if biased:
        biases = [
            layer.weight.new_zeros(layer.out_features) if layer.bias is None else layer.bias.detach()
            for layer in layers
        ]
        joined.bias = nn.Parameter(torch.cat(biases), requires_grad=first.weight.requires_grad)
    return joined.train(first.training)
