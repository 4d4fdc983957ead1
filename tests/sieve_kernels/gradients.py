"""Compare values and gradients of our functions with float64, relative to torch's error in the same dtype."""

from collections.abc import Callable, Sequence

import torch
from accuracy import assert_accurate
from torch import Tensor


def values_and_gradients(
    function: Callable,
    tensors: Sequence[Tensor | None],
    upstreams: Sequence[Tensor],
    trained: Sequence[int] | None = None,
) -> list:
    """Outputs of function(*tensors), then the gradients of the `trained` tensors, by index; one upstream per output.

    trained: None: all that are there.
    """
    trained = [i for i, t in enumerate(tensors) if t is not None] if trained is None else trained
    leaves = [t.detach().requires_grad_() if i in trained else t for i, t in enumerate(tensors)]
    outputs = function(*leaves)
    outputs = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    upstreams = [u.to(y.dtype) for u, y in zip(upstreams, outputs, strict=True)]
    found = torch.autograd.grad(outputs, [leaves[i] for i in trained], upstreams)
    return [*(y.detach() for y in outputs), *found]


def check_gradients(
    ours: Callable,
    definition: Callable,
    tensors: Sequence[Tensor | None],
    torchs: Callable | None = None,
    trained: Sequence[int] | None = None,
) -> None:
    """Check `ours` by the accuracy rule; `torchs` (by default the definition) gives torch's error."""
    trained = [i for i, t in enumerate(tensors) if t is not None] if trained is None else trained
    with torch.no_grad():
        outputs = definition(*tensors)
    upstreams = [torch.randn_like(y) for y in ([outputs] if isinstance(outputs, Tensor) else outputs)]
    wide = [t.double() if i in trained else t for i, t in enumerate(tensors)]
    exact = values_and_gradients(definition, wide, upstreams, trained)
    measure = values_and_gradients(torchs or definition, tensors, upstreams, trained)
    for mine, e, t in zip(values_and_gradients(ours, tensors, upstreams, trained), exact, measure, strict=True):
        assert_accurate(mine, e, t)
