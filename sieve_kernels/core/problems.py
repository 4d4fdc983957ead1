"""Problems for ahead-of-time compilation and traffic counts: classes of shapes, and dtypes."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Problem:
    """A layer from T rows of n elements to m outputs at rank r, in a dtype."""

    T: int
    n: int
    m: int
    r: int
    dtype: torch.dtype = torch.bfloat16

    @property
    def size(self) -> int:
        """Bytes of an element."""
        return self.dtype.itemsize

    @property
    def acc_dtype(self) -> torch.dtype:
        """The dtype in which statistics accumulate."""
        return torch.float64 if self.dtype == torch.float64 else torch.float32


PROBLEMS = {
    "aligned": Problem(4096, 4096, 14336, 1024),
    "ragged": Problem(4093, 4093, 14331, 1021),  # odd strides: no wide loads, a mask on every side
    "small": Problem(8191, 576, 1536, 200),  # SmolLM2: few tiles, long sums; r and T are no multiples of 16
    "few": Problem(8, 4096, 14336, 1024),
    "one": Problem(1, 4096, 14336, 1024),
}
"""Shape classes that are compiled."""

COUNTED = {
    "aligned": Problem(256, 384, 512, 128),
    "ragged": Problem(201, 331, 453, 93),
    "few": Problem(8, 384, 512, 128),
}
"""Shapes whose traffic is counted: several tiles each way, and small enough for the interpreter."""

DTYPES = {
    torch.bfloat16: tuple(PROBLEMS),
    torch.float32: ("aligned", "ragged", "few"),
    torch.float16: ("aligned",),
    torch.float64: ("aligned",),
}
"""Shape classes compiled per dtype: float16 compiles like bfloat16, and float64 is for tests."""
