"""`GemmConfig`: tiles, split-K, warps and stages of a launch of a matrix product. Every launcher takes one.

Each kernel has a `TunedKernel` in its file: a cost model, a list of configs worth measuring, and the limits of a
config. A launch takes the config that `python -m sieve_kernels.autotune` measured as fastest for its class of shapes on
this device; else that of the most similar device of its architecture; else the cost model's.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace

import torch

from sieve_kernels.core import decisions, tuning_cache
from sieve_kernels.core.device import architecture, is_amd, shared_memory

COST_MODEL = "cost model"
ANY = "any"
"""Architecture of configs for every GPU."""

SPLITTABLE = "splittable"
"""Trait of a product whose reader adds split-K parts."""
UNALIGNED = "unaligned"
"""Trait of a product whose elements are loaded one by one."""


@dataclass(frozen=True)
class GemmConfig:
    """Tiles and how a program computes one. Values are powers of two, except `split_k` across programs, stages, groups.

    Attributes:
        block_m, block_n: rows and columns of a tile of the result. GEMV kernels take all rows.
        block_k: elements along K per step.
        split_k: parts of the sum over K; each has its own program, or (GEMV) its own warp.
        num_warps, num_stages: warps of a program, and stages of its load pipeline.
        group_m: rows of tiles that are computed together, so that shared operands are still in L2.
    """

    block_m: int
    block_n: int
    block_k: int
    split_k: int = 1
    num_warps: int = 4
    num_stages: int = 3
    group_m: int = 8

    @classmethod
    def read(cls, value: Mapping[str, object]) -> "GemmConfig | None":
        """The config in a file's entry; None if another version wrote it or it is damaged."""
        known = {one.name for one in fields(cls)}
        whole = all(type(number) is int and number > 0 for number in value.values())
        return cls(**value) if whole and {"block_m", "block_n", "block_k"} <= value.keys() <= known else None

    def __str__(self) -> str:
        parts = [f"{self.block_m}×{self.block_n}×{self.block_k}"]
        parts += [f"split-K {self.split_k}"] * (self.split_k > 1) + [f"groups of {self.group_m}"] * (self.group_m != 8)
        return ", ".join([*parts, f"{self.num_warps} warps", f"{self.num_stages} stages"])


@dataclass(frozen=True)
class GemmShape:
    """What the choice of a config depends on: products a [M, K_i] · b [N_i, K_i] transposed in one launch.

    Attributes:
        dtype: of a; bits: of an element of b.
        traits: further properties that matter to a kernel.
    """

    M: int
    Ns: tuple[int, ...]
    Ks: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    bits: int = 16
    traits: frozenset[str] = frozenset()

    @property
    def N(self) -> int:
        """Total columns of all results."""
        return sum(self.Ns)

    @property
    def K(self) -> int:
        """The longest sum."""
        return max(self.Ks)

    @property
    def key(self) -> tuple:
        """The class of shapes that share a measured config, as stored in files of choices."""
        sizes = tuning_cache.shape_class(self.M), tuning_cache.fine_class(self.N), tuning_cache.fine_class(self.K)
        return str(self.dtype).removeprefix("torch."), self.bits, *sizes, " ".join(sorted(self.traits))

    def __str__(self) -> str:
        return f"{self.M}×{self.N}×{self.K}"


@dataclass(frozen=True)
class ChosenConfig:
    """A launch's config, and its source."""

    kernel: "TunedKernel"
    shape: GemmShape
    config: GemmConfig
    source: str

    def __str__(self) -> str:
        return f"{self.kernel.name} {self.shape}: {self.config} ({self.source})"


@dataclass(frozen=True, eq=False)
class TunedKernel:
    """A kernel with the configs it can be launched with.

    Attributes:
        name: its name in files of choices and in `explain`.
        cost_model: the config for a shape without a measurement.
        configs: candidates by architecture, `ANY` for all; `python -m sieve_kernels.autotune` measures them.
        supports: whether a config works for a shape on its device.
    """

    name: str
    cost_model: Callable[[GemmShape], GemmConfig]
    configs: Mapping[str, Sequence[GemmConfig]]
    supports: Callable[[GemmConfig, GemmShape], bool]
    tried: dict[GemmShape, GemmConfig] = field(default_factory=dict, init=False, repr=False)

    def choose(self, shape: GemmShape) -> GemmConfig:
        """The config of a launch."""
        chosen = self._choose(shape)
        for record in _records:
            record.append(chosen)
        return chosen.config

    def _choose(self, shape: GemmShape) -> ChosenConfig:
        if shape in self.tried:
            return ChosenConfig(self, shape, self.tried[shape], "tried")
        # Tensors without memory serve ahead-of-time compilation, for which nothing was measured.
        if shape.device.type != "meta":
            measured = tuning_cache.config(self.name, shape.key, shape.device)
            if measured is not None:
                config = GemmConfig.read(measured.value)
                if config is not None and self.supports(config, shape):
                    return ChosenConfig(self, shape, config, measured.source)
        return ChosenConfig(self, shape, self._fitted(shape), COST_MODEL)

    def candidates(self, shape: GemmShape) -> list[GemmConfig]:
        """The configs worth measuring for a shape, the cost model's first."""
        listed = [*self.configs.get(architecture(shape.device), ()), *self.configs.get(ANY, ())]
        return list(dict.fromkeys([self._fitted(shape), *(one for one in listed if self.supports(one, shape))]))

    def _fitted(self, shape: GemmShape) -> GemmConfig:
        """The cost model's config, made smaller until it fits; GPUs unknown to the model may need that."""
        config = self.cost_model(shape)
        while not self.supports(config, shape):
            smaller = _smaller(config)
            if smaller is None:
                break
            config = smaller
        return config

    @contextmanager
    def trying(self, shape: GemmShape, config: GemmConfig) -> Iterator[None]:
        """Within, launches of this shape take `config`."""
        self.tried[shape] = config
        decisions.forget()
        try:
            yield
        finally:
            del self.tried[shape]
            decisions.forget()


def _smaller(config: GemmConfig) -> GemmConfig | None:
    """The next config that needs less shared memory; None if there is none."""
    if config.num_stages > 2:
        return replace(config, num_stages=config.num_stages - 1)
    if config.block_k > 16:
        return replace(config, block_k=config.block_k // 2)
    if config.block_m > 16 or config.block_n > 16:
        wider = "block_m" if config.block_m > config.block_n else "block_n"
        return replace(config, **{wider: getattr(config, wider) // 2})
    return None


def fits_shared_memory(config: GemmConfig, shape: GemmShape, operands: int = 1) -> bool:
    """Whether all stages of a tile of a and of `operands` tiles of b fit a program's shared memory."""
    # AMD's compiler keeps one of the stages in registers.
    buffers = config.num_stages - 1 if is_amd() else config.num_stages
    size = shape.dtype.itemsize
    step = config.block_k * (config.block_m * size + operands * config.block_n * size)
    return buffers * step <= shared_memory(shape.device)


_records: list[list[ChosenConfig]] = []


@contextmanager
def recorded() -> Iterator[list[ChosenConfig]]:
    """Within, collects the configs that launches choose."""
    record: list[ChosenConfig] = []
    _records.append(record)
    decisions.forget()
    try:
        yield record
    finally:
        _records.pop()
        decisions.forget()
