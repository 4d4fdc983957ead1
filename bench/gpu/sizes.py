"""The sizes that are measured on a GPU, and small sizes to try the program without one."""

import os
from dataclasses import dataclass, field
from typing import Any

from bench.shapes import MODELS
from sieve.models.matrix import Matrix

KEPT = 0.5
MULTIPLE = 64
"""Ranks are multiples of this, so that tiles are full."""


def ranks(m: int, n: int, multiple: int = MULTIPLE) -> tuple[int, int]:
    """The ranks of the plain and of the pivoted pair that keep half of the parameters of W [m, n]."""
    plain, pivoted = (Matrix("", m, n, 0, pivoted=kind).rank_at(KEPT, multiple) for kind in (False, True))
    return plain, pivoted


def _many_shapes() -> tuple[tuple[int, int], ...]:
    """(m, n) of all models, those of the 8B model first."""
    models = [MODELS["llama-3-8b"], *MODELS.values()]
    return tuple(dict.fromkeys((m, n) for model in models for n, m in model.matrices().values()))


@dataclass(frozen=True)
class SweepRows:
    """Rows of the calls in the sweeps of `choices`."""

    pair: int = 16
    group: int = 256
    mlp: int = 64


@dataclass(frozen=True)
class Searches:
    """Whole searches: of a model on a task, and of random weights of some shapes on the same task.

    The task is a built-in one or, where its package is not installed, a task file: SIEVE_BENCH_TASK.
    """

    model: str = "smollm2"
    task: str = os.environ.get("SIEVE_BENCH_TASK", "geography")
    questions: int = 1000
    tokens: int = 32_768
    generations: int | None = 4
    """Of 60 candidates each, after some 60 to begin with."""
    shapes: dict[str, dict[str, Any]] = field(
        default_factory=lambda: {
            "8b": _llama(4096, 14336, 32, 32),
            "3b": _llama(3072, 8192, 28, 24) | {"tie_word_embeddings": True},
            "1b": _llama(2048, 8192, 16, 32) | {"tie_word_embeddings": True},
        }
    )


def _llama(hidden: int, intermediate: int, blocks: int, heads: int) -> dict[str, Any]:
    """A configuration of Llama 3's kind."""
    return {
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": blocks,
        "num_attention_heads": heads,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "max_position_embeddings": 4096,
    }


@dataclass(frozen=True)
class Sizes:
    """Matrices are (outputs m, inputs n); T is rows of input."""

    multiple: int = MULTIPLE
    cold: int = 256 << 20
    """Bytes of all copies of the weights. Calls cycle through them, so that no weight is still in a cache."""
    copied: int = 2 << 30
    """Bytes of the tensor that is copied to measure the bandwidth."""
    square: int = 8192
    """Side of the matrices that are multiplied to measure the arithmetic."""
    hidden: int = 4096
    """Width of the layers whose host time is measured."""
    few_shapes: tuple[tuple[int, int], ...] = ((4096, 4096), (14336, 4096), (4096, 14336))
    few_rows: tuple[int, ...] = (1, 16, 4, 2, 8, 32)
    head: tuple[int, int] = (128256, 4096)
    many_shapes: tuple[tuple[int, int], ...] = field(default_factory=_many_shapes)
    many_rows: tuple[int, ...] = (2048, 64, 256, 1024, 8192, 128, 512, 4096)
    group: tuple[int, tuple[int, ...]] = (4096, (4096, 1024, 1024))
    """Inputs, and outputs of query, key and value."""
    mlp: tuple[int, int] = (4096, 14336)
    """Inputs and hidden units."""
    group_rows: tuple[int, ...] = (1, 16, 64, 256, 2048, 8192)
    training_rows: tuple[int, ...] = (2048, 256)
    peer_rows: tuple[int, ...] = (1, 16, 2048)
    grams: tuple[tuple[int, int], ...] = ((8192, 4096), (8192, 1536), (8192, 576), (16384, 8192))
    """(T, n)."""
    batches: tuple[int, ...] = (1, 16, 128)
    prompts: tuple[tuple[int, int], ...] = ((8, 2048), (1, 2048))
    cache: int = 256
    models: dict[str, dict[str, Any]] = field(
        default_factory=lambda: {
            "decoder": _llama(4096, 14336, 8, 32),
            "smollm2": {
                "hidden_size": 576,
                "intermediate_size": 1536,
                "num_hidden_layers": 30,
                "num_attention_heads": 9,
                "num_key_value_heads": 3,
                "vocab_size": 49152,
                "max_position_embeddings": 4096,
                "tie_word_embeddings": True,
            },
        }
    )
    """Model configurations by the first word of their cells' names."""
    calls: int = 32
    """Calls per measurement of host time; all their launches fit the GPU's queue, so that the host never waits."""
    rounds: int = 21
    sweep_rows: SweepRows = SweepRows()
    search: Searches = field(default_factory=Searches)
    choices: tuple[str, ...] = ("--no-configs",)
    """Options of `sieve_kernels.autotune` outside the sweeps: without configs, since each takes seconds to compile."""
    ships: bool = True
    """Whether the choices are copied into the package."""


FULL = Sizes()

SMOKE = Sizes(
    multiple=8,
    cold=1 << 16,
    copied=1 << 20,
    square=64,
    hidden=64,
    few_shapes=((64, 64), (96, 64)),
    few_rows=(1, 4),
    head=(128, 64),
    many_shapes=((64, 64), (96, 64)),
    many_rows=(64, 128),
    group=(64, (64, 32, 32)),
    mlp=(64, 96),
    group_rows=(1, 64),
    training_rows=(32,),
    peer_rows=(2,),
    grams=((128, 64),),
    batches=(1, 2),
    prompts=((2, 16),),
    cache=32,
    models={
        "decoder": {
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "vocab_size": 128,
            "max_position_embeddings": 64,
        }
    },
    calls=2,
    rounds=2,
    sweep_rows=SweepRows(pair=4, group=8, mlp=4),
    choices=("--rows", "1", "--ranks", "8", "--size", "64", "--rounds", "1"),
    ships=False,
)
