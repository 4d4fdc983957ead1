"""By how much the task's loss grows when a matrix loses rank: for all ranks of all matrices, from one backward pass.

With g_t the gradient of an example's loss at a matrix's output and A, B its nested factors, cutting the pair at rank r
changes the output of token t by -e_t(r), e_t(r) = Σ_{i>r} b_i (a_i·x_t), and the loss, to second order and with the
Fisher matrix for the Hessian, by

    Δ(r) = -E[d(r)] + ½ E[d(r)²],   d(r) = Σ_t g_t·e_t(r) = Σ_t g_t·(y_t - Σ_{i≤r} b_i (a_i·x_t)),

over examples. The first term is left out: its mean over few examples is noise. Products (Bᵀ g)_i (A x)_i summed over an
example's tokens give d(r) for every r at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from sieve.compression.low_rank.factors import Factors
from sieve.compression.low_rank.pair import FactorPair
from sieve.errors import NumericsError
from sieve.evaluation.likelihood import logits_at
from sieve.evaluation.shortcuts import allowed
from sieve.models.halving import in_halves
from sieve.models.loading import context_length, evaluating, going_backward
from sieve.models.numerics import product
from sieve.tasks import Example, Task
from sieve.tasks.encoding import encode_target, fitted, windows
from sieve.utils import progress

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from sieve.calibration.text import Sample

EXAMPLES = 256  # in one batch after another; more tell a matrix's share of the loss little better
PIECE, PREDICTED = 24, 8  # tokens of a piece of generated text, and of those that are to be predicted
LONGEST = 2048  # tokens of an example, where the model names no context
_CELLS = 1024  # rows × tokens of a batch


def sensitivity(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    factors: Factors,
    task: Task,
    examples: Sequence[Example],
    generated: Sequence[Sample] = (),
) -> tuple[dict[str, np.ndarray], int]:
    """Predicted increase of the mean negative log-likelihood of the right answer, per matrix and rank.

    Args:
        model: the dense model that `factors` are of.
        examples: of a split that the search may see; never of the test split.
        generated: texts of the model's own; as many pieces of them count as there are examples.

    Returns: matrix name → float64 [R + 1] in nats, entry r for rank r, and the tokens that were read.
    """
    # What is to be predicted: answers behind their prompts, or whole texts in windows, and the model's own texts.
    context = context_length(model) or LONGEST
    targets = (encode_target(tokenizer, task, example) for example in examples)
    if not task.has_prompts:
        sequences = [window for ids, start in targets for window in windows(ids, start, context - 1)]
    else:
        sequences = [fitted(tokenizer, task, [target], context)[0] for target in targets]
    sequences += _pieces(generated, len(sequences))
    sequences.sort(key=_length)
    # One backward pass per batch tells the loss of every rank of every matrix.
    sums = {name: np.zeros(pair.max_rank + 1) for name, pair in factors.items()}
    tokens = 0
    with evaluating(model), progress.bar("gradients", len(sequences), "examples") as advance:
        for batch in _batches(sequences):

            def part(first: int, end: int, batch: list = batch) -> dict[str, np.ndarray]:
                return _batch(model, factors, batch[first:end])

            found = in_halves(model, len(batch), _length(batch[-1]), part, _added, "backward")
            for name, squares in found.items():
                sums[name] += squares
            tokens += sum(map(_length, batch))
            advance(len(batch))
    if not any(total.any() for total in sums.values()):
        raise NumericsError(
            "the right answers have no gradient at any matrix: the model gives them a probability of exactly 1, or "
            f"gradients underflow in {model.dtype}; use another --dtype, or --search uniform"
        )
    return {name: total / len(sequences) / 2 for name, total in sums.items()}, tokens


def _pieces(generated: Sequence[Sample], most: int) -> list[tuple[list[int], int]]:
    """Pieces of texts, evenly drawn, whose last tokens are what is to be predicted: as an answer is."""
    pieces = [
        (sample.ids[start : start + PIECE], PIECE - PREDICTED)
        for sample in generated
        for start in range(0, len(sample.ids) - PIECE + 1, PIECE)
    ]
    step = max(1, len(pieces) / max(most, 1))
    return [pieces[int(place * step)] for place in range(min(most, len(pieces)))]


def _added(one: dict[str, np.ndarray], two: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: squares + two[name] for name, squares in one.items()}


def _batch(model: PreTrainedModel, factors: Factors, batch: Sequence[tuple[list[int], int]]) -> dict[str, np.ndarray]:
    """Σ d(r)² over the examples of one batch, by matrix."""
    # The rows, and the positions that predict the tokens of right answers.
    longest = max(map(_length, batch))
    ids = torch.tensor([row + [0] * (longest - len(row)) for row, _ in batch], device=model.device)
    cells = [(row, place - 1) for row, (tokens, start) in enumerate(batch) for place in range(start, len(tokens))]
    rows, places = torch.tensor(cells, device=model.device).T
    # Note what every matrix reads and writes in a forward pass, then go backward from the answers' loss.
    inputs: dict[str, torch.Tensor] = {}
    outputs: dict[str, torch.Tensor] = {}

    def watch(name: str):
        def hook(module: torch.nn.Module, args: tuple, output: torch.Tensor) -> None:
            inputs[name], outputs[name] = args[0].detach(), output

        return hook

    handles = [model.get_submodule(name).register_forward_hook(watch(name)) for name in factors]
    # So that gradients flow where parameters are frozen, too.
    handles.append(model.get_input_embeddings().register_forward_hook(_require_gradient))
    try:
        with going_backward(model):
            logprobs = (
                logits_at(model, ids, torch.stack([rows, places], dim=1), few=allowed(model).logits)
                .float()
                .log_softmax(-1)
            )
            # Rows are independent: the gradient of the sum is each example's own.
            loss = -logprobs.gather(1, ids[rows, places + 1][:, None]).sum()
            recorded = {name: output for name, output in outputs.items() if output.requires_grad}
            if not recorded:
                raise NotImplementedError("its blocks do not record what they compute")
            # What the answers do not depend on has no gradient.
            gradients = torch.autograd.grad(loss, list(recorded.values()), allow_unused=True, materialize_grads=True)
    finally:
        for handle in handles:
            handle.remove()
    # What is computed without gradients only chooses among others, as an index of attention does.
    found = {name: torch.zeros_like(output) for name, output in outputs.items()}
    found |= dict(zip(recorded, gradients, strict=True))
    return {
        name: _squares(model.get_submodule(name), factors[name], inputs[name], output, found[name], len(batch))
        for name, output in outputs.items()
    }


@torch.no_grad()
def _squares(
    layer: torch.nn.Module,
    pair: FactorPair,
    x: torch.Tensor,
    output: torch.Tensor,
    gradient: torch.Tensor,
    examples: int,
) -> np.ndarray:
    """Σ d(r)² [R + 1] float64 of one matrix; x [..., n], output and gradient [..., m] are equal parts by example."""
    if layer.bias is not None:
        output = output - layer.bias
    if pair.mean is not None:
        x, output = x - pair.mean.to(x.dtype), output - pair.output_mean.to(output.dtype)
    whole = (gradient.float() * output.float()).reshape(examples, -1).sum(1)
    kind = pair.A.dtype
    directions = product(gradient.to(kind), pair.B).float() * product(x.to(kind), pair.A.T).float()
    directions = directions.reshape(examples, -1, pair.max_rank)
    held = directions.sum(1).double().cumsum(1)
    lost = whole.double()[:, None] - torch.cat([torch.zeros_like(held[:, :1]), held], dim=1)
    return lost.square().sum(0).cpu().numpy()


def _require_gradient(module: torch.nn.Module, args: tuple, output: torch.Tensor) -> torch.Tensor:
    return output if output.requires_grad else output.requires_grad_()


def _batches(sequences: Sequence[tuple[list[int], int]]) -> list[list[tuple[list[int], int]]]:
    """Sequences of ascending length in batches of at most `_CELLS` cells."""
    batches: list[list[tuple[list[int], int]]] = []
    for sequence in sequences:
        if not batches or (len(batches[-1]) + 1) * _length(sequence) > _CELLS:
            batches.append([])
        batches[-1].append(sequence)
    return batches


def _length(sequence: tuple[list[int], int]) -> int:
    return len(sequence[0])
