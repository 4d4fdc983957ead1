"""Refusing matrices that share a weight with another part of the model: they cannot be masked alone."""

from collections.abc import Iterable

from torch import nn

from sieve.errors import InputError


def check_untied(model: nn.Module, names: Iterable[str]) -> None:
    """InputError naming the first of these matrices that shares its weight with another module."""
    owners: dict[int, list[str]] = {}
    for owner, parameter in model.named_parameters(remove_duplicate=False):
        owners.setdefault(id(parameter), []).append(owner)
    for name in names:
        sharing = owners[id(model.get_submodule(name).weight)]
        if len(sharing) > 1:
            other = next(owner for owner in sharing if owner != f"{name}.weight")
            raise InputError(
                f"{name} shares its weight with {other}: a mask for one would also mask the other. Untie them first"
            )
