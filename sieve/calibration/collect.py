"""The calibration pass: forward hooks stream activations of every prunable matrix into Gram matrices."""

from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sieve.calibration.generated import generate_samples
from sieve.calibration.gradients import backward, column_basis, watching_gradients, watching_importance
from sieve.calibration.keep import keep, kept_file, kept_statistics, require_place
from sieve.calibration.once import OnlyOnce
from sieve.calibration.statistics import SUMS, Source, Statistics
from sieve.calibration.text import Batch, Sample, batches, calibration_sequences, fingerprint
from sieve.errors import InputError, NumericsError
from sieve.evaluation.likelihood import EVERYTHING, Continuation
from sieve.evaluation.shortcuts import verified
from sieve.models.halving import in_halves
from sieve.models.linears import weight_of
from sieve.models.loading import check_token_ids, context_length, evaluating
from sieve.models.matrix import Matrix
from sieve.models.prunable_model import PrunableModel
from sieve.registry import method_named
from sieve.tasks import Task, load_task
from sieve.utils import progress
from sieve.utils.identity import identity_of
from sieve_kernels import channel_sums, gram_

# Cells of one batch; where gradients are needed, a batch is smaller by this factor.
BATCH_TOKENS, GRADIENTS = 4096, 4
# One example in this many is held back.
HELD_BACK = 8


def calibrate(
    model: PreTrainedModel | PrunableModel,
    tokenizer: PreTrainedTokenizerBase,
    task: str | Path | Task,
    tokens: int = 32_768,
    method: str = "output_aligned",
    seed: int = 0,
    batch_tokens: int = BATCH_TOKENS,
    path: str | Path | None = None,
    generated: int | Sequence[Sample] = 0,
) -> Statistics:
    """Run the task's calibration split through the model once and sum the statistics that `method` needs.

    Args:
        model: any `AutoModelForCausalLM`; left as it was.
        task: a built-in task's name, a YAML file, or a `Task`.
        method: a name that `sieve methods` lists; the statistics that it needs also serve every method that needs
            no more. "output_aligned" needs the least.
        tokens: the budget; it includes the right answers' tokens, but no padding.
        seed: of the task's splits.
        batch_tokens: cells of one batch; memory is the Grams and the activations of one batch. If gradients are
            needed, a batch is a quarter of it, since the activations of all layers are kept at once.
        path: keep the statistics in this file; reuse it if it exists and is of this model, tokenizer, data, method and
            versions (`sieve.utils.identity`). In a folder the file's name is made from these. No existing file
            is replaced or removed, except in the user's cache, which keeps only the last calibration.
        generated: so many tokens more, of text that the model generates itself after rows of the calibration split
            (`sieve.calibration.generated`); or such texts, of another model.

    Returns: `Statistics`, float32 sums on the model's device.

    Raises: InputError (bad task, too few tokens, a model that is not causal, `path` holds something else),
        NumericsError naming the layer whose activations are not finite, StorageError where `path` cannot be written or
        is damaged.

    Example:
        >>> statistics = sieve.calibrate(model, tokenizer, "geography", tokens=32_768)
    """
    prunable = PrunableModel.of(model)
    model = prunable.model
    wanted = method_named(method)
    if path is not None:
        require_place(path)
    task = load_task(task)
    beside = generated if isinstance(generated, int) else sum(len(sample.ids) for sample in generated)
    sequences = calibration_sequences(
        tokenizer, task, task.splits(seed)["calibration"], tokens, context_length(model) or 2048, beside
    )
    check_token_ids(model, tokenizer, max(max(sample.ids, default=0) for sample in sequences))
    learns = wanted.gradients
    # Reuse existing statistics, if they are of exactly this calibration.
    identity = identity_of(model, tokenizer) | {"data": fingerprint(sequences, learns), "kind": wanted.kind}
    if generated:
        text = generated if isinstance(generated, int) else fingerprint(generated, learns)
        identity |= {"generated text": f"{text}, seed {seed}"}
    file = None if path is None else kept_file(path, identity)
    if file is not None and (kept := kept_statistics(file, identity, model.device)) is not None:
        return kept
    # Try the shortcuts as evaluation does, which also refuses a model that is not causal.
    verified(model, [[Continuation(*sample)] for sample in sequences if sample.start < len(sample.ids)], EVERYTHING)
    # Methods that choose a setting need examples that were not summed.
    held_back = []
    if learns:
        if len(sequences) < 2:
            raise InputError(
                f"{method} chooses on held-back examples and there is only one: raise --calibration-tokens"
            )
        count = max(1, len(sequences) // HELD_BACK)
        sequences, held_back = sequences[:-count], sequences[-count:]
        batch_tokens //= GRADIENTS
    texts = generated
    if isinstance(generated, int):
        texts = generate_samples(model, tokenizer, sequences, generated, seed) if generated else []
    sequences = [*sequences, *texts]
    channels = prunable.channel_writers if wanted.channels else ()
    measured = collect(prunable, batches(sequences, batch_tokens), wanted.side, learns, channels)
    statistics = replace(measured, identity=identity, samples=sequences, held_back=held_back, generated=list(texts))
    if file is not None:
        keep(statistics, file)
    return statistics


@torch.no_grad()
def collect(
    model: PreTrainedModel | PrunableModel,
    data: list[Batch],
    needs: Literal["cheapest", "input", "none"] = "cheapest",
    gradients: bool = False,
    channels: Collection[str] = (),
) -> Statistics:
    """Sum the statistics of all prunable matrices over `data`. `needs`: see `sieve.registry.Method.side`.

    With `gradients`, each batch also runs backward from its answers' loss. Of the matrices `channels`, which needs
    that, the importance of their input channels and the Gram matrix of these are summed, and no gradients.
    """
    model = PrunableModel.of(model)
    # Which Gram matrices are summed, and of which size.
    matrices, groups = model.matrices(), model.input_groups
    sources, width = _sums_of(model, needs, gradients, channels)
    tokens = sum(int(batch.mask.sum()) for batch in data)
    if needs == "none" and not gradients:
        return Statistics({}, sources, tokens)
    # Hooks add to the sums while batches run.
    grams = {key: torch.zeros(d, d, dtype=torch.float32, device=model.device) for key, d in width.items()}
    sums = {group[0]: torch.zeros(len(SUMS), matrices[group[0]].n, device=model.device) for group in groups}
    importance = {name: torch.zeros(matrices[name].n, device=model.device) for name in channels}
    with evaluating(model.model), ExitStack() as stack, progress.bar("calibration", tokens, "tokens") as advance:
        mask, once = _Mask(), OnlyOnce()
        for name, source in sources.items():
            layer = model.layer(name)
            # Only one matrix of a group watches the input that all of them read.
            if source.gram in (name, f"{name}.output"):
                stack.enter_context(_watching(layer, grams[source.gram], source, mask, once))
            if source.inputs == name:
                stack.enter_context(_summing(layer, sums[name], name, mask, once))
            if source.gradient:
                stack.enter_context(
                    watching_gradients(layer, grams[source.gradient], _basis(layer), source.gradient, once)
                )
            if name in importance:
                stack.enter_context(watching_importance(layer, importance[name], name, once))
        for batch in data:
            once.next_batch()

            def part(first: int, end: int, batch: Batch = batch) -> None:
                once.begin(first, end)
                rows = batch.rows(first, end)
                mask.set(rows.mask.to(model.device))
                if gradients:
                    backward(model.model, rows)
                else:
                    model.run_decoder(rows.ids, mask.mask)

            in_halves(model.model, *batch.ids.shape, part, lambda *_: None, "backward" if gradients else "calibration")
            _check_finite(grams, sources)
            advance(int(batch.mask.sum()))
    # Gradients that are all zero carry no information: the loss-aware projection could not use them.
    squares = [grams[source.gradient].diagonal() for source in sources.values() if source.gradient]
    if gradients and not any(bool(one.any()) for one in (*squares, *importance.values())):
        answers = sum(max(0, int(length) - start) for batch in data
                      for length, start in zip(batch.mask.sum(1), batch.starts.tolist(), strict=True))  # fmt: skip
        raise NumericsError(_no_gradient(answers, model.dtype))
    return Statistics(grams, sources, tokens, sums, importance=importance)


def _no_gradient(answers: int, dtype: torch.dtype) -> str:
    if not answers:
        return "no token of a right answer is in the calibration data, so there is no gradient: give its rows answers"
    return (
        f"the {answers} answer tokens of the calibration data have no gradient at any matrix: the model gives them a "
        f"probability of exactly 1, or gradients underflow in {dtype}; use another --dtype, or --method output_aligned"
    )


def sources_of(model: PrunableModel, method: str) -> dict[str, Source]:
    """Where `calibrate` for this method puts the statistics of each matrix."""
    wanted = method_named(method)
    return _sums_of(model, wanted.side, wanted.gradients, model.channel_writers if wanted.channels else ())[0]


def statistics_bytes(model: PrunableModel, method: str) -> int:
    """Bytes of the statistics that the method needs, known from the shapes of the model's matrices."""
    wanted, matrices = method_named(method), model.matrices()
    channels = model.channel_writers if wanted.channels else ()
    if wanted.side == "none" and not wanted.gradients:
        return 0
    _, width = _sums_of(model, wanted.side, wanted.gradients, channels)
    sums = sum(len(SUMS) * matrices[group[0]].n for group in model.input_groups)
    return 4 * (sum(d * d for d in width.values()) + sums + sum(matrices[name].n for name in channels))


def _sums_of(
    model: PrunableModel, needs: str, gradients: bool, channels: Collection[str]
) -> tuple[dict[str, Source], dict[str, int]]:
    """Where the statistics of each matrix are, and the width of each Gram matrix."""
    matrices = model.matrices()
    sources = _choose_sides(model.input_groups, matrices, needs, channels)
    width = {source.gram: matrices[name].n if source.side == "input" else matrices[name].m
             for name, source in sources.items() if source.gram}  # fmt: skip
    if gradients:
        # Matrices that lose channels are not projected: their gradients would serve nothing.
        gone = {*channels, *(writer for name in channels for writer, _ in model.channel_writers[name])}
        for name in [name for name in sources if name not in gone]:
            sources[name] = replace(sources[name], gradient=f"{name}.gradient")
            width[sources[name].gradient] = min(matrices[name].m, matrices[name].n)
    return sources, width


def _choose_sides(
    groups: list[list[str]], matrices: dict[str, Matrix], needs: str, channels: Collection[str]
) -> dict[str, Source]:
    """The Grams with the fewest operations: one n×n for the shared input, or an m×m for each output (DESIGN 2.1).

    Of the inputs where the matrix is among `channels`.
    """
    sources = {}
    for group in groups:
        first = group[0]
        if needs == "none":
            sources |= {name: Source("input", "", inputs=first) for name in group}
        elif (
            needs == "input"
            or first in channels
            or matrices[first].n ** 2 <= sum(matrices[name].m ** 2 for name in group)
        ):
            sources |= {name: Source("input", first, inputs=first) for name in group}
        else:
            sources |= {name: Source("output", f"{name}.output", inputs=first) for name in group}
    return {name: sources[name] for name in matrices}


class _Mask:
    """Which tokens of the current batch count; `weight` is None when all do."""

    def set(self, mask: torch.Tensor) -> None:
        self.mask = mask
        self.weight = None if bool(mask.all()) else mask.flatten().bool()


@contextmanager
def _watching(layer: nn.Module, gram: torch.Tensor, source: Source, mask: _Mask, once: OnlyOnce) -> Iterator[None]:
    """Add this layer's inputs or bias-free outputs to `gram` at every forward."""

    def hook(layer: nn.Module, args: tuple, output: torch.Tensor) -> None:
        if not once.wants(source.gram):
            return
        rows = (args[0] if source.side == "input" else output).detach()
        if source.side == "output" and layer.bias is not None:
            rows = rows - layer.bias.detach()
        rows = rows.reshape(-1, rows.shape[-1])
        with once.adding(source.gram):
            gram_(gram, rows, mask.weight)

    with layer.register_forward_hook(hook):
        yield


@contextmanager
def _summing(layer: nn.Module, sums: torch.Tensor, name: str, mask: _Mask, once: OnlyOnce) -> Iterator[None]:
    """Add Σ x, Σ |x| and Σ x² of this layer's inputs, channel by channel, to the rows of `sums` at every forward."""

    def hook(layer: nn.Module, args: tuple) -> None:
        key = f"sums of {name}"
        if once.wants(key):
            found = channel_sums(args[0], mask.weight)
            with once.adding(key):
                sums.add_(found)

    with layer.register_forward_pre_hook(hook):
        yield


def _basis(layer: nn.Module) -> torch.Tensor | None:
    """`column_basis` of a weight with more outputs than inputs, in its dtype: gradients need no other part."""
    W = weight_of(layer).detach()
    if W.shape[0] <= W.shape[1]:
        return None
    wide = torch.float32 if W.device.type == "mps" else torch.float64
    return column_basis(W.to(wide))[0].to(W.dtype)


def _check_finite(grams: dict[str, torch.Tensor], sources: dict[str, Source]) -> None:
    """NumericsError naming the first layer, in the order of execution, whose statistics are not finite."""
    watched = [(f"{source.side}s", name, source.gram) for name, source in sources.items() if source.gram]
    watched += [("gradients", name, source.gradient) for name, source in sources.items() if source.gradient]
    finite = torch.isfinite(torch.stack([grams[key].diagonal().sum() for _, _, key in watched]))
    if not finite.all():
        what, name, _ = watched[int((~finite).nonzero()[0])]
        raise NumericsError(
            f"the {what} of {name} hold NaN or infinity: check the model's weights before it, "
            "or run in another --dtype (float16 overflows where bfloat16 does not)"
        )
