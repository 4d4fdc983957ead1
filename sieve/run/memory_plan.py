"""The memory that a run needs, stage by stage, before the work: from the model's shapes and the task's lengths.

Weights, statistics and factors are counted to the byte. What passes take is an estimate, on the large side.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import torch

from sieve.calibration.collect import BATCH_TOKENS, GRADIENTS, statistics_bytes
from sieve.checkpoint.size import model_bytes
from sieve.compression.low_rank.parallel import LARGEST
from sieve.compression.low_rank.share_inputs import share_inputs_
from sieve.compression.methods import result_bytes
from sieve.errors import InputError
from sieve.evaluation.likelihood import CACHED_BATCHES, cells_of_a_pass
from sieve.healing.config import AUTO, LORA
from sieve.healing.masters import trained_parameters
from sieve.healing.pace import ROWS
from sieve.healing.possible import bytes_of_a_parameter
from sieve.healing.rows import CELLS, TARGETS
from sieve.models.loading import context_length, device_named, shapes_before_loading, shapes_of
from sieve.models.prunable_model import PrunableModel
from sieve.registry import method_named
from sieve.run.compressed import asked_ranks
from sieve.searchers.algorithms.base import searcher_named
from sieve.searchers.engine.cuda_graphs import BUFFER_BYTES
from sieve.utils import progress
from sieve.utils.devices import free_memory
from sieve.utils.messages import one_line

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from sieve.run.recipe import Recipe
    from sieve.tasks import Example

_GRADIENT_CELLS = BATCH_TOKENS // GRADIENTS
# Examples whose tokens are counted: the longest by characters.
_COUNTED = 8
# Characters of a prompt, and of what follows it, that are read: longer ones are cut to the context anyway.
_READ = 1 << 16
# Candidates whose states a search holds that asks for one after the other.
_FEW = 16
_OVERRULE = ". Passes are estimated on the large side: --memory-limit SIZE overrules what is free"
# A checkpoint of one setting's healing: a master, two moments, the best weights.
_KEPT = 14


class Lengths(NamedTuple):
    """Of the task's largest split.

    longest: tokens of its longest sequence. sequences: prompts with each of their choices. predicted: part of the
    tokens that are to be predicted. examples: its number of prompts, which all their choices share.
    """

    longest: int
    sequences: int
    predicted: float
    examples: int

    @property
    def tokens(self) -> int:
        """Tokens that are run, prompts once."""
        return self.longest * (self.examples + int(self.sequences * self.predicted))


@dataclass(frozen=True)
class MemoryPlan:
    """stages: name → part → bytes on the device; host: name → bytes beside it, 0 where the device is the host."""

    stages: Mapping[str, Mapping[str, int]]
    host: Mapping[str, int]

    @property
    def largest(self) -> str:
        """The stage that needs most."""
        return max(self.stages, key=self.of)

    @property
    def peak(self) -> int:
        return self.of(self.largest)

    @property
    def of_healing(self) -> int:
        """Bytes of healing, in all rounds; 0 without."""
        return max((self.of(stage) for stage in ("heal", "rounds") if stage in self.stages), default=0)

    def of(self, stage: str) -> int:
        """Bytes of a stage."""
        return sum(self.stages[stage].values())

    def __str__(self) -> str:
        each = " · ".join(f"{name} {_size(self.of(name))}" for name in self.stages)
        parts = ", ".join(f"{name} {_size(size)}" for name, size in self.stages[self.largest].items() if size)
        host = f"; of the host {_size(max(self.host.values()))}" if any(self.host.values()) else ""
        return f"memory: {each} (of {self.largest}: {parts}){host}"


def lengths_of(
    tokenizer: PreTrainedTokenizerBase, splits: Mapping[str, Sequence[Example]], context: int | None
) -> Lengths:
    """What the memory of passes depends on."""
    examples = max(splits.values(), key=len)
    texts = [(one.prompt[-_READ:], text[:_READ]) for one in examples for text in one.choices or (one.target,)]
    longest = sorted(texts, key=lambda text: len(text[0]) + len(text[1]), reverse=True)[:_COUNTED]
    counts = [(len(tokenizer(prompt + text)["input_ids"]), len(tokenizer(prompt)["input_ids"]) if prompt else 0)
              for prompt, text in longest]  # fmt: skip
    tokens = max(max(whole for whole, _ in counts), 1)
    predicted = max(1 + whole - before for whole, before in counts) / tokens
    return Lengths(min(tokens, context or tokens), len(texts), min(predicted, 1.0), len(examples))


def memory_plan(model: PreTrainedModel, recipe: Recipe, lengths: Lengths, device: str) -> MemoryPlan:
    """What a run of the recipe needs.

    Args:
        model: dense, on the device "meta", in the dtype that it will have; its layers may be changed.
        device: the type of the device that the run will be on.
    """
    dense = PrunableModel(model)
    wanted, config = method_named(recipe.method), recipe.method_config()
    tensors = {id(one): one for one in (*model.parameters(), *model.buffers())}.values()
    weights = {"weights": sum(one.nbytes for one in tensors)}
    passes = _Passes(dense, lengths, device)
    prunable = sum(one.parameters for one in dense.matrices().values()) * model.dtype.itemsize
    # From here on the model may be another one, of stacked matrices.
    trained = 0 if recipe.healing.kind == LORA else sum(one.numel() for one in trained_parameters(model).values())
    if recipe.shared_input:
        with progress.muted():
            dense = PrunableModel(share_inputs_(model, not wanted.channels, required=False))
    statistics = {"statistics": (1 + bool(recipe.task_aware)) * statistics_bytes(dense, recipe.method)}
    largest = asked_ranks(recipe, dense, torch.device(device))
    results = {recipe.traits.results: result_bytes(dense, recipe.method, config, largest)}
    compressing = _compressing(recipe, statistics, results, len(dense.blocks))
    left = statistics if recipe.keeps_statistics else {}
    searcher = searcher_named(recipe.searcher)
    backward = recipe.surrogate and searcher.per_matrix and recipe.traits.predictable

    # The C library keeps what passes have freed.
    kept = passes.scoring() if device == "cpu" else 0
    stages = {
        "load": weights,
        "dense": weights | {"passes": passes.scoring()},
        "calibrate": weights | statistics | {
            "passes": max(kept, passes.backward(_GRADIENT_CELLS) if wanted.gradients
                          else passes.forward(BATCH_TOKENS))
        },
        recipe.traits.stage: weights | compressing | {"passes": kept, "solving": _solving(dense, device)},
    }  # fmt: skip
    search = weights | left | results
    per_candidate = passes.states()
    shared = recipe.engine.memory if _shares(recipe) else 0
    stages["search"] = search | {
        "passes": max(passes.scoring(), passes.backward(_GRADIENT_CELLS) if backward else 0),
        "states": min(shared, per_candidate * _FEW) if searcher.sequential else shared,
        "a stored copy": prunable,
        "graphs": BUFFER_BYTES if device == "cuda" else 0,
    }
    host = dict.fromkeys(stages, 0)
    if device != "cpu":
        host["calibrate"] = statistics["statistics"]
    if recipe.healing.kind:
        # What was searched with is there no more.
        stages["heal"] = weights | {
            "optimisers": bytes_of_a_parameter(lengths.sequences > lengths.examples) * trained,
            "passes": passes.backward(min(CELLS, ROWS * lengths.longest), TARGETS),
        }
        if recipe.rounds > 1:
            again = passes.backward(_GRADIENT_CELLS) + 2 * prunable
            stages["rounds"] = {name: 2 * size for name, size in weights.items()} | compressing | {"passes": again}
        if device != "cpu":
            host["heal"] = _KEPT * trained
    return MemoryPlan(stages, host)


@dataclass(frozen=True)
class _Passes:
    """Bytes that forward and backward passes take beside weights."""

    model: PrunableModel
    lengths: Lengths
    device: str

    def __post_init__(self):
        config = self.model.model.config.get_text_config(decoder=True)
        matrices = self.model.matrices().values()
        heads = getattr(config, "num_attention_heads", None) or 1
        kept = getattr(config, "num_key_value_heads", None) or heads
        each = getattr(config, "head_dim", None) or config.hidden_size // heads
        itemsize = self.model.dtype.itemsize
        facts = {
            "_itemsize": itemsize,
            "_hidden": config.hidden_size,
            "_blocks": len(self.model.blocks),
            "_heads": heads,
            "_vocabulary": config.vocab_size,
            "_cached": 2 * kept * each * len(self.model.blocks) * itemsize,
            "_widest": max((max(one.m, one.n) for one in matrices), default=config.hidden_size),
            "_moved": sum(one.m + one.n for one in matrices) * itemsize,
        }
        for name, value in facts.items():
            object.__setattr__(self, name, value)

    def forward(self, cells: int) -> int:
        """Without a cache and without logits: a few tensors of one block, norms in float32."""
        return self._cells(cells) * (self._itemsize * (4 * self._hidden + 4 * self._widest) + 8 * self._hidden)

    def scoring(self) -> int:
        """The passes of one model, or of one batch of candidates."""
        cells = self._cells(cells_of_a_pass(torch.device(self.device)))
        held = min(CACHED_BATCHES * cells, self.lengths.tokens)
        return self.forward(cells) + 2 * held * self._cached + self._logits(cells)

    def backward(self, cells: int, targets: int | None = None) -> int:
        """With what every block leaves for it."""
        cells = self._cells(cells)
        scores = 3 * self._blocks * self._heads * self.lengths.longest * self._itemsize if self.device == "cpu" else 0
        kept = 2 * self._moved + self._blocks * 16 * self._hidden + scores
        return cells * kept + self._logits(cells, 3, targets)

    def states(self) -> int:
        """Hidden states of one candidate on all examples, at every block that begins candidates."""
        return self.lengths.tokens * self._hidden * self._itemsize * min(self._blocks, 15)

    def _cells(self, cells: int) -> int:
        return max(min(cells, self.lengths.sequences * self.lengths.longest), self.lengths.longest)

    def _logits(self, cells: int, copies: int = 1, targets: int | None = None) -> int:
        rows = int(cells * self.lengths.predicted) + 1
        rows = rows if targets is None else min(rows, targets)
        return rows * self._vocabulary * (self._itemsize + 4 * copies)


def _compressing(
    recipe: Recipe, statistics: Mapping[str, int], results: Mapping[str, int], blocks: int
) -> dict[str, int]:
    """Statistics and results while these are made.

    Where block by block the ones give way to the others, memory holds the larger of both and one block's of each.
    """
    if recipe.keeps_statistics or not recipe.traits.gives_way:
        return {**statistics, **results}
    ((name, made),) = results.items()
    used = statistics["statistics"]
    return {**statistics, name: max(made - used, 0) + (made + used) // blocks}


def _solving(model: PrunableModel, device: str) -> int:
    """Of the float64 problems that are solved at a time: weight, Gram matrix, and what decompositions take."""
    matrices = model.matrices().values()
    largest = max((max(one.m, one.n) for one in matrices), default=0)
    at_once = torch.get_num_threads() if device == "cpu" and largest <= LARGEST else 1
    return at_once * max((8 * (3 * one.m * one.n + 6 * min(one.m, one.n) ** 2) for one in matrices), default=0)


def plan_memory(
    recipe: Recipe,
    splits: Mapping[str, Sequence[Example]],
    model: PreTrainedModel | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> Recipe | None:
    """`require_memory` of a model that is not loaded yet, or of the one that is given, with its tokenizer.

    Returns: the recipe to go on with, or None where only the loaded model tells.
    """
    if model is not None:
        config, kind, dtype, loaded = model.config, type(model), model.dtype, model_bytes(model)
    elif (found := shapes_before_loading(recipe.model)) is not None:
        (config, tokenizer), kind, dtype, loaded = found, None, recipe.dtype, 0
    else:
        return None
    device = device_named(recipe.device)

    def shapes(wanted: str) -> PreTrainedModel:
        return shapes_of(config, dtype if wanted == recipe.dtype else wanted, device, kind)

    return require_memory(recipe, shapes, lengths_of(tokenizer, splits, context_length(config)), device, loaded)


def require_memory(
    recipe: Recipe,
    shapes: Callable[[str], PreTrainedModel],
    lengths: Lengths,
    device: torch.device,
    loaded: int = 0,
) -> Recipe:
    """Print the plan of the run; returns the recipe, without a healing that was left to what memory allows.

    Args:
        shapes: dtype, as the recipe has it → the model on the device "meta".
        loaded: bytes of the model that are in memory already.

    Raises: InputError where the plan does not fit, in one line that says what would.
    """

    def planned(recipe: Recipe) -> MemoryPlan:
        return memory_plan(shapes(recipe.dtype), recipe, lengths, device.type)

    limit, name = _limit(recipe, device, loaded)
    try:
        plan = planned(recipe)
    except Exception as error:
        # Some architectures cannot run on shapes alone.
        progress.say(f"  memory: not planned, as the model's shapes do not tell ({one_line(error, 80)})")
        return recipe
    if recipe.healing.heal == AUTO and plan.of_healing > limit:
        progress.note(
            f"the pruned model will not be healed: that takes {_size(plan.of_healing)} of memory, and "
            f"{_size(limit)} are {name}"
        )
        recipe = _unhealed(recipe)
        plan = planned(recipe)
    progress.say(f"  {plan}; {_size(limit)} {name}")
    if plan.peak > limit:
        raise InputError(
            f"the run needs {_size(plan.peak)} of memory in the stage {plan.largest}, and {_size(limit)} are {name}: "
            f"{_what_fits(recipe, planned, limit)}{_OVERRULE if recipe.memory_limit is None else ''}"
        )
    most, free = max(plan.host.values()), free_memory(torch.device("cpu"))
    if most > free:
        raise InputError(
            f"the run needs {_size(most)} of the host's memory for copies of what is on {device}, and {_size(free)} "
            "are free: free some"
        )
    if device.type == "cuda" and recipe.memory_limit is not None:
        # What an estimate missed then ends in halved passes, not in memory that others have.
        _, total = torch.cuda.mem_get_info(device)
        torch.cuda.set_per_process_memory_fraction(min(limit / total, 1.0), device)
    return recipe


def _limit(recipe: Recipe, device: torch.device, loaded: int) -> tuple[int, str]:
    """Bytes that the run may take, those of the loaded model among them, and what they are called.

    The user's word counts, also for more than is free: most of a plan is an estimate.
    """
    if recipe.limits.allowed is not None:
        return recipe.limits.allowed, "allowed (--memory-limit)"
    return free_memory(device) + loaded, "free"


def _what_fits(recipe: Recipe, planned: Callable[[Recipe], MemoryPlan], limit: int) -> str:
    """The options with which the run would fit, tried one after the other, then together."""
    steps: list[tuple[str, Callable[[Recipe], Recipe]]] = []
    if recipe.engine.memory and _shares(recipe):
        steps.append(("--memory 0", lambda one: replace(one, engine=replace(one.engine, memory=0))))
    if recipe.healing.kind:
        steps.append(("--heal none", _unhealed))
    if method_named(recipe.method).gradients:
        steps.append(("--method output_aligned", _without_gradients))
    if recipe.dtype not in ("bfloat16", "float16"):
        steps.append(("--dtype bfloat16", lambda one: replace(one, loading=replace(one.loading, dtype="bfloat16"))))
    changed, taken, least = recipe, [], planned(recipe).peak
    for words, change in steps:
        if planned(change(recipe)).peak <= limit:
            return f"it would fit with {words}"
        if (peak := planned(change(changed)).peak) < least:
            changed, taken, least = change(changed), [*taken, words], peak
        if least <= limit:
            return f"it would fit with {' '.join(taken)}"
    even = f"even with {' '.join(taken)} it" if taken else "it"
    return f"{even} needs {_size(least)}: use a smaller model, or a device with more memory"


def _shares(recipe: Recipe) -> bool:
    """Whether candidates share states."""
    return recipe.engine.layers and searcher_named(recipe.searcher).per_matrix


def _unhealed(recipe: Recipe) -> Recipe:
    return replace(recipe, healing=recipe.healing.left_out())


def _without_gradients(recipe: Recipe) -> Recipe:
    return replace(recipe, compression=replace(recipe.compression, method="output_aligned"))


def _size(size: int) -> str:
    unit, word = (1 << 30, "GiB") if size >= 1 << 30 else (1 << 20, "MiB")
    return f"{size / unit:.{1 if size < 10 * unit else 0}f} {word}"
