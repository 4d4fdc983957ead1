"""All masks of a model in one go."""

import torch
from transformers import PreTrainedModel

from sieve.calibration.statistics import Statistics
from sieve.compression.masks.config import PATTERNS, MaskOptions
from sieve.compression.masks.layerwise_sparsity import layerwise_shifts
from sieve.compression.masks.masks import CompensatedMask, Mask, Masks
from sieve.compression.masks.methods import MASKING, MaskMethod
from sieve.compression.masks.nesting import nested_thresholds
from sieve.compression.masks.scores import inverse_root, of_channels, of_weights
from sieve.compression.masks.task_aware import fuse, pooled
from sieve.compression.masks.tied import check_untied
from sieve.errors import InputError, NumericsError
from sieve.models.matrix import Matrix
from sieve.models.numerics import double
from sieve.models.prunable_model import PrunableModel
from sieve.registry import method_named
from sieve.utils import progress

# If one set has this many times the tokens of the other, warn: the smaller set is much noisier.
_UNEVEN = 16


@torch.no_grad()
def mask(
    model: PreTrainedModel | PrunableModel,
    statistics: Statistics | None,
    method: str = "wanda",
    general: Statistics | None = None,
    options: MaskOptions | None = None,
) -> Masks:
    """Score every weight of the prunable matrices; the result holds nested masks for all sparsities.

    Use the result like factors: `sieve.search(model, tokenizer, masks, task)` and `sieve.apply_(model, masks,
    plan)`, where a plan's number is how many weights a row keeps.

    Args:
        model: the dense model that was calibrated; not changed. Masks refer to its weights and do not copy them.
        statistics: from `sieve.calibrate` with the same `method`; None for "magnitude".
        method: "magnitude", "wanda", "sparsegpt" or "ria" (`sieve.compression.masks.scores`).
        general: for `options.task_aware`, the statistics of general text (`sieve.tasks.general_text`).
        options: `MaskOptions`.

    Raises: InputError for unknown or contradictory options, statistics of another kind, or matrices that share one
        weight; NumericsError naming the matrix whose weights or statistics are not finite.

    Example:
        >>> masks = sieve.mask(model, sieve.calibrate(model, tokenizer, "geography", method="wanda"))
        >>> masks["model.layers.0.mlp.down_proj"].at(768)  # half of 1,536 weights a row
    """
    # Refuse bad options and matrices before any weight is scored.
    wanted = method_named(method, MASKING)
    options = (options or MaskOptions()).check(method)
    if options.task_aware and general is None:
        raise InputError("task-aware masks need statistics of general text: calibrate on `sieve.tasks.general_text()`")
    if general is not None and not options.task_aware:
        raise InputError("only task-aware masks read statistics of general text: give MaskOptions(task_aware=True)")
    model = PrunableModel.of(model)
    matrices = maskable(model, options)
    # The statistics for scoring: those of the task and, for task-aware masks, those of general text.
    sides = {"task": statistics} if wanted.side != "none" else {}
    if options.task_aware:
        sides["general"] = general
        _note_lengths(statistics.tokens, general.tokens)
    # By Gram matrix: matrices that read one input share everything computed from it.
    of_inputs: dict[str, _Inputs] = {}
    found, traces, skipped = {}, {}, []
    with progress.bar("scores", len(matrices), "matrices") as advance:
        for name, matrix in matrices.items():
            advance(1)
            W = model.weight(name).detach()
            _require_finite(name, W)
            groups = PATTERNS[options.pattern]
            # Matrices without a mask of this pattern stay dense.
            if groups and matrix.n % groups[1]:
                skipped.append(name)
                continue
            # Without statistics only the weights count.
            if not sides:
                found[name] = Mask(
                    W, nested_thresholds(of_weights(W.float(), method), options.pattern, options.compare)
                )
                continue
            key = _source(statistics, name)
            if key not in of_inputs:
                grams = {side: _per_token(measured, name) for side, measured in sides.items()}
                of_inputs[key] = _Inputs(name, grams, wanted, options)
            # Compensating methods solve each rank later; all others get one table of thresholds.
            inputs = of_inputs[key]
            traces[name] = inputs.trace
            if wanted.compensates:
                found[name] = CompensatedMask(W, inputs.channels, inputs.root, options.pattern, options.compare)
            else:
                scores = of_weights(W.float(), method) * inputs.channels
                found[name] = Mask(W, nested_thresholds(scores, options.pattern, options.compare))
    if skipped:
        progress.note(f"{len(skipped)} matrices stay dense: their rows do not divide by {options.pattern}")
    sizes = {name: matrix.parameters for name, matrix in matrices.items()}
    return Masks(found, method, options, layerwise_shifts(traces, sizes, options.ramp) if options.ramp else {})


def maskable(model: PrunableModel, options: MaskOptions) -> dict[str, Matrix]:
    """The prunable matrices; InputError if none can be masked, or two share one weight."""
    matrices, groups = model.matrices(), PATTERNS[options.pattern]
    check_untied(model.model, matrices)
    if groups and all(matrix.n % groups[1] for matrix in matrices.values()):
        raise InputError(f"no matrix has rows that divide into groups of {groups[1]}: choose --pattern unstructured")
    return matrices


class _Inputs:
    """Facts about one input that scores and updates need: float32 on the weights' device.

    channels: [n], factors of the scores. root: R [n, n] where kept weights compensate, else None. trace: tr(H) / n.
    """

    def __init__(self, name: str, grams: dict[str, torch.Tensor], method: MaskMethod, options: MaskOptions):
        device = grams["task"].device
        grams = {side: double(H) for side, H in grams.items()}
        H = grams["task"]
        if "general" in grams:
            H = pooled(grams["general"], grams["task"], options.task_share)
        _require_finite(name, *grams.values())
        self.trace = float(H.diagonal().mean())
        root = inverse_root(H, options.damping) if method.compensates else None
        if "general" not in grams or options.fusion == "concatenate":
            channels = of_channels(H, method.name, options.damping, root)
        else:
            sides = (grams["general"], grams["task"])
            channels = fuse(*sides, tuple(of_channels(H, method.name, options.damping) for H in sides), options)
        # Only ratios matter: scale to about 1, in the middle of float32's range.
        self.channels = (channels / channels.mean()).float().to(device)
        self.root = None if root is None else root.float().to(device)


def _source(statistics: Statistics, name: str) -> str:
    source = statistics.sources.get(name)
    if source is None:
        raise InputError(f"the statistics know nothing of {name}: calibrate this model first")
    if source.side != "input" or source.gram not in statistics.grams:
        raise InputError(f"masks need Gram matrices of the inputs of {name}: calibrate with method='wanda'")
    return source.gram


def _per_token(statistics: Statistics, name: str) -> torch.Tensor:
    """H [n, n] as the mean over tokens, so that their number does not matter."""
    return statistics.grams[_source(statistics, name)] / statistics.tokens


def _require_finite(name: str, *tensors: torch.Tensor) -> None:
    if not all(torch.isfinite(tensor).all() for tensor in tensors):
        raise NumericsError(f"the weights or statistics of {name} hold NaN or infinity: check the model")


def _note_lengths(task: int, general: int) -> None:
    if max(task, general) > _UNEVEN * min(task, general):
        progress.note(
            f"{task:,} tokens of the task and {general:,} of general text: their weights are as "
            "asked for, but the statistics of the smaller set are noisy"
        )
