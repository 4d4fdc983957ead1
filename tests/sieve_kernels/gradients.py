"""Compare values and gradients of our functions with float64, relative to torch's error in the same dtype."""

from collections.abc import Callable, Sequence

import torch
from accuracy import assert_accurate
from torch import Tensor


def values_and_gradients(function: Callable, tensors: Sequence[Tensor | None], upstreams: Sequence[Tensor]) -> list:
    """Outputs of function(*tensors), then the gradients of all tensors that are there; one upstream per output."""
    leaves = [None if t is None else t.detach().requires_grad_() for t in tensors]
    outputs = function(*leaves)
    outputs = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    upstreams = [u.to(y.dtype) for u, y in zip(upstreams, outputs, strict=True)]
    found = torch.autograd.grad(outputs, [t for t in leaves if t is not None], upstreams)
    return [*(y.detach() for y in outputs), *found]


def check_gradients(
    ours: Callable, definition: Callable, tensors: Sequence[Tensor | None], torchs: Callable | None = None
) -> None:
    """Check `ours` by the accuracy rule; `torchs` (by default the definition) gives torch's error."""
    with torch.no_grad():
        outputs = definition(*tensors)
    upstreams = [torch.randn_like(y) for y in ([outputs] if isinstance(outputs, Tensor) else outputs)]
    wide = [None if t is None else t.double() for t in tensors]
    exact = values_and_gradients(definition, wide, upstreams)
    measure = values_and_gradients(torchs or definition, tensors, upstreams)
    for mine, e, t in zip(values_and_gradients(ours, tensors, upstreams), exact, measure, strict=True):
        assert_accurate(mine, e, t)
