"""A linear layer of an MLP that has lost hidden channels."""

from torch import nn


class NarrowLinear(nn.Linear):
    """An `nn.Linear` of fewer inputs or outputs than the model's configuration says.

    It is a class of its own only so that saving a model finds it: it runs, trains and takes adapters as any other.
    """


LINEAR = (nn.Linear, NarrowLinear)
"""The types of layers that are one plain product."""
