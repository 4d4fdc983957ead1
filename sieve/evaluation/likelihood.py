"""Log-likelihoods of continuations; tokens that several sequences begin with are run once.

A question is a list of token sequences that usually share a beginning: its prompt with each choice. Scoring takes three
steps, which are the levels of a trie:

1. the beginning that *all* questions share (instruction, few-shot examples) is run once;
2. on top of its KV cache, the rest of each question's shared beginning, in batches of similar length;
3. on top of that, what is left of each sequence. The last token of a sequence is only predicted, never run, so a
   choice of one token ends with step 2.

Rows are padded on the right, where a causal model cannot see it, and before step 3 the cache is cut to rows of one
exact length. There is thus never a hole in the cache: no mask is needed and positions are those of an unpadded run,
whatever the model's position encoding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from sieve.errors import NumericsError
from sieve.models.halving import in_halves
from sieve.models.numerics import first_nonfinite
from sieve.utils import progress

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Largest rows × (cached + new) tokens of one forward pass, in units of batch_tokens; it bounds the memory of the cache.
CACHED_BATCHES = 8
# A forward pass has a fixed cost, as much as this many tokens; a batch with more padding than that is split.
_PADDING = {"cpu": 128}
# Cells (rows × padded length) of one forward pass: where launching takes as long as computing, few large ones.
_CELLS, _CELLS_CPU = 16_384, 2048
# Rows of logits that are converted to float32 at a time, to bound memory.
_ROWS = 256


def cells_of_a_pass(device: torch.device) -> int:
    """How many cells one forward pass has at most, unless a caller says otherwise."""
    return _CELLS_CPU if device.type == "cpu" else _CELLS


class Continuation(NamedTuple):
    """Token ids, of which those from `start` on are scored, 1 ≤ start < len(ids).

    The sequences of one question agree in all tokens before the smallest `start`, or in none.
    """

    ids: list[int]
    start: int


@dataclass(frozen=True)
class Sharing:
    """Shortcuts that save work; each can be switched off alone. With all off, every sequence is run whole and alone.

    prefix: tokens that several sequences begin with are run once.
    logits: the head runs on the positions that predict a scored token.
    padding: sequences of similar length go together.
    rows: several sequences go through one forward pass; without, there is no padding at all.
    steps: answers are written on top of the prompts' caches (`sieve.evaluation.steps`).
    """

    prefix: bool = True
    logits: bool = True
    padding: bool = True
    rows: bool = True
    steps: bool = True


EVERYTHING = Sharing()
# Keys and values of each layer, [rows, heads, tokens, head_dim].
Layers = list[tuple[torch.Tensor, torch.Tensor]]


class _Past(NamedTuple):
    """What a pass goes on from: per row, the cached row that it continues, and how many of its tokens are there."""

    layers: Layers
    rows: list[int]
    length: int


_NOTHING = _Past([], [], 0)
# Called with the numbers of the questions, one per row, and the cache of their tokens.
Keep = Callable[[list[int], Layers], None]


class _Query(NamedTuple):
    """The log-probability of `token` after position `position` of row `row` counts for sequence `number`."""

    row: int
    position: int
    token: int
    number: int


class _Tail(NamedTuple):
    """The rest of sequence `number` behind its first `cached` tokens, which are cached in row `row`."""

    cached: int
    length: int
    row: int
    number: int
    sequence: Continuation


def score(
    model: PreTrainedModel,
    questions: Sequence[Sequence[Continuation]],
    batch_tokens: int,
    description: str,
    sharing: Sharing = EVERYTHING,
    keep: Keep | None = None,
) -> tuple[list[list[float]], int]:
    """Log-likelihood in nats of each sequence's scored tokens, and the number of tokens run.

    keep: called with the cache of each pass; only for questions of one sequence, on models that `can_reuse_cache`.
    The order of the work depends on the arguments alone, so that the same model gives the same bits.

    Raises: NumericsError naming the first layer whose output is not finite.
    """
    (logliks,), tokens = score_copies(model, questions, batch_tokens, description, sharing, 1, keep)
    return logliks, tokens


@torch.inference_mode()
def score_copies(
    model: PreTrainedModel,
    questions: Sequence[Sequence[Continuation]],
    batch_tokens: int,
    description: str,
    sharing: Sharing,
    copies: int,
    keep: Keep | None = None,
) -> tuple[list[list[list[float]]], int]:
    """`score` for a model that runs several candidates at a time: the p-th part of all rows belongs to candidate p.

    Every forward pass has `copies` copies of its rows, one after the other, and `copies` × `batch_tokens` cells.
    Returns the log-likelihoods of each candidate, and the tokens that one of them ran.
    """
    cached = sharing.prefix and can_reuse_cache(model)
    batch_tokens = batch_tokens if sharing.rows else 0
    # Step 1: the beginning that all questions share, once.
    units = _units(questions, cached)
    shared = [
        min(length_in_common(ids for _, (ids, _) in unit), *(len(sequence.ids) - 1 for _, sequence in unit))
        for unit in units
    ]
    common = _common_to_all(units) if len(units) > 1 and cached else 0
    results = torch.zeros(copies, sum(map(len, questions)), dtype=torch.float64)
    prefix = _run(model, [units[0][0][1].ids[:common]], _NOTHING, [], results, keep=True) if common else []
    tokens = common

    # Step 2: the rest of each question's shared beginning, in batches of similar length.
    order = sorted(range(len(units)), key=lambda index: (shared[index] if sharing.padding else 0, index))
    lengths = [shared[index] - common for index in order]
    most_padding = _PADDING.get(model.device.type) if sharing.padding else None
    with progress.bar(description, len(units), "questions", summary=False) as advance:
        for span in batches(lengths, common, batch_tokens, most_padding):
            batch = order[span]
            rows = [units[index][0][1].ids[common : shared[index]] for index in batch]
            queries, tails = [], []
            for row, index in enumerate(batch):
                end = shared[index]
                for number, sequence in units[index]:
                    ids, start = sequence
                    queries += [_Query(row, at - 1 - common, ids[at], number) for at in range(start, end + 1)]
                    if len(ids) - 1 > end:
                        tails.append(_Tail(end, len(ids), row, number, sequence))
            past = _Past(prefix, [0] * len(rows), common)
            wanted = bool(tails) or keep is not None
            layers = _run(model, rows, past, queries, results, wanted, sharing.logits)
            if keep is not None:
                keep(batch, layers)
            tokens += sum(map(len, rows))
            # Step 3: what is left of each sequence, on top of that.
            for end, group in groupby(sorted(tails), key=lambda tail: tail.cached):
                tokens += _run_tails(model, layers, end, list(group), batch_tokens, results)
            advance(len(rows))
    # One list for each candidate, as the questions were given.
    logliks = []
    for values in map(iter, results.tolist()):
        logliks.append([[next(values) for _ in question] for question in questions])
    return logliks, tokens


def _units(questions: Sequence[Sequence[Continuation]], cached: bool) -> list[list[tuple[int, Continuation]]]:
    """Numbered sequences in groups that share a beginning; each sequence is a group if nothing can be shared."""
    units: list[list[tuple[int, Continuation]]] = []
    number = 0
    for question in questions:
        unit = list(enumerate(question, number))
        number += len(question)
        together = cached and length_in_common(sequence.ids for sequence in question) > 0
        units += [unit] if together else [[member] for member in unit]
    return units


def _run_tails(
    model: PreTrainedModel, layers: Layers, end: int, tails: list[_Tail], batch_tokens: int, results: torch.Tensor
) -> int:
    """Step 3 for sequences whose first `end` tokens are cached; returns the number of tokens run."""
    tokens = 0
    lengths = [tail.length - 1 - end for tail in tails]
    for span in batches(lengths, end, batch_tokens, _PADDING.get(model.device.type)):
        batch = tails[span]
        rows = [tail.sequence.ids[end:-1] for tail in batch]
        queries = [
            _Query(row, at - 1 - end, tail.sequence.ids[at], tail.number)
            for row, tail in enumerate(batch)
            for at in range(max(tail.sequence.start, end + 1), tail.length)
        ]
        past = _Past(layers, [tail.row for tail in batch], end)
        _run(model, rows, past, queries, results, keep=False)
        tokens += sum(map(len, rows))
    return tokens


def _run(
    model: PreTrainedModel,
    rows: Sequence[Sequence[int]],
    past: _Past,
    queries: list[_Query],
    results: torch.Tensor,
    keep: bool,
    few_logits: bool = True,
) -> Layers:
    """One forward pass over copies of rows on top of `past`; adds the queries' log-probabilities to `results`.

    Where memory does not suffice it runs in halves, each of whose rows are as long as those of the whole.

    Args: results [copies, sequences]; past has as many copies of its rows.
    Returns: the cache, past included, if it is to be kept, else [].
    """
    longest, copies = max(map(len, rows)), len(results)

    def part(first: int, end: int) -> Layers:
        own = [query._replace(row=query.row - first) for query in queries if first <= query.row < end]
        layers = _take_rows(past.layers, past.rows[first:end], past.length, copies)
        return _pass(model, rows[first:end], longest, layers, own, results, keep, few_logits)

    return in_halves(
        model, len(rows), copies * (past.length + longest), part, lambda one, two: _joined(one, two, copies)
    )


def _pass(
    model: PreTrainedModel,
    rows: Sequence[Sequence[int]],
    longest: int,
    past: Layers,
    queries: list[_Query],
    results: torch.Tensor,
    keep: bool,
    few_logits: bool,
) -> Layers:
    """`_run` of rows that fit into memory, padded to `longest`. `results` change at the very end."""
    copies = len(results)
    ids = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows] * copies, device=model.device)
    cells = sorted({(query.row, query.position) for query in queries}) or [(0, 0)]
    where = {cell: number for number, cell in enumerate(cells)}
    cache = DynamicCache(past) if past else (DynamicCache() if keep else None)
    every = [(copy * len(rows) + row, position) for copy in range(copies) for row, position in cells]
    logits = logits_at(model, ids, torch.tensor(every, device=model.device), cache, few_logits)

    # Log-probabilities of the asked tokens: the logit less the logarithm of the sum over the vocabulary.
    numbers = torch.tensor([where[query.row, query.position] for query in queries], dtype=torch.int64)
    chosen = torch.tensor([query.token for query in queries], dtype=torch.int64)
    normalizers = torch.cat([chunk.float().logsumexp(-1) for chunk in logits.split(_ROWS)]).cpu()
    # Shape [copies, queries].
    numbers = torch.arange(copies)[:, None] * len(cells) + numbers
    picked = logits[numbers.to(logits.device), chosen.to(logits.device)].float().cpu()
    logprobs = picked.double() - normalizers[numbers].double()
    if not (torch.isfinite(normalizers).all() and torch.isfinite(logprobs).all()):
        raise NumericsError(f"the model's output is not finite: {first_nonfinite(model, ids)}")
    results.index_add_(1, torch.tensor([query.number for query in queries], dtype=torch.int64), logprobs)
    return [(layer.keys, layer.values) for layer in cache.layers] if keep else []


def logits_at(
    model: PreTrainedModel,
    ids: torch.Tensor,
    cells: torch.Tensor,
    cache: DynamicCache | None = None,
    few: bool = True,
    **inputs: torch.Tensor,
) -> torch.Tensor:
    """Logits [K, vocabulary] at K cells (row, position) of ids [B, T], cells int64 [K, 2], in the model's dtype.

    inputs: what else the model is given, such as `attention_mask`.

    A hook takes the K hidden states out of what the decoder hands to the model's own `forward`, which then does to
    them whatever it does before and after its head (scaling, soft-capping): the head, a quarter of the work of a
    small model, runs on K rows instead of B·T. A decoder that hands over something else keeps all of its rows.
    """
    taken = False

    def take(module: torch.nn.Module, args: tuple, output):
        nonlocal taken
        # Decoders return an output object, a tuple, or the hidden states alone.
        alone = isinstance(output, torch.Tensor)
        # In output objects and tuples the hidden states come first.
        hidden = output if alone else output[0]
        if hidden.shape[:2] != ids.shape:
            return output
        taken, hidden = True, hidden[cells[:, 0], cells[:, 1]][None]
        if alone:
            return hidden
        if isinstance(output, tuple):
            return (hidden, *output[1:])
        output[next(iter(output))] = hidden
        return output

    # Let the head see the chosen rows alone.
    decoder = model.get_decoder()
    # Some architectures call their head "decoder".
    if decoder is model.get_output_embeddings():
        decoder = model.base_model
    handle = decoder.register_forward_hook(take) if few and decoder is not model else None
    try:
        output = model(input_ids=ids, past_key_values=cache, use_cache=cache is not None, return_dict=True, **inputs)
    finally:
        if handle is not None:
            handle.remove()
    return output.logits[0] if taken else output.logits[cells[:, 0], cells[:, 1]]


def can_reuse_cache(model: PreTrainedModel) -> bool:
    """Whether the model keeps keys and values alone: recurrent states cannot be cut to a length, and what some keep
    besides (an index of the keys, the state of a convolution) would be lost."""
    if getattr(model, "_is_stateful", False):
        return False
    layers = DynamicCache(config=model.config).layers
    # A window is kept as a whole here, and the model's mask cuts it.
    return all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers)


def _take_rows(layers: Layers, rows: list[int], length: int, copies: int) -> Layers:
    """The first `length` cached tokens of the given rows of each copy; a row may be named several times."""
    if not layers:
        return []
    each = len(layers[0][0]) // copies
    rows = [copy * each + row for copy in range(copies) for row in rows]
    return [(keys[rows, :, :length], values[rows, :, :length]) for keys, values in layers]


def _joined(one: Layers, two: Layers, copies: int) -> Layers:
    """The cached rows of two parts of a pass, behind one another in each copy; empties the lists, to save memory."""
    layers: Layers = []
    while one:
        parts = (
            [each.unflatten(0, (copies, -1)) for each in pair] for pair in zip(one.pop(0), two.pop(0), strict=True)
        )
        keys, values = (torch.cat(pair, 1).flatten(0, 1) for pair in parts)
        layers.append((keys, values))
    return layers


def length_in_common(sequences: Iterable[Sequence[int]]) -> int:
    """Length of the longest common beginning."""
    length = 0
    # The loop ends with the shortest sequence.
    for tokens in zip(*sequences, strict=False):
        if len(set(tokens)) > 1:
            break
        length += 1
    return length


def _common_to_all(units: Sequence[Sequence[tuple[int, Continuation]]]) -> int:
    """Length of the common beginning of all sequences, without the first token that predicts a scored one."""
    first = min(sequence.start for unit in units for _, sequence in unit)
    return min(first - 1, length_in_common(unit[0][1].ids for unit in units))


def batches(lengths: Sequence[int], cached: int, batch_tokens: int, padding: int | None = None) -> Iterator[slice]:
    """Spans of `lengths` that fit into one forward pass on top of `cached` tokens per row; ascending lengths pad least.

    padding: cells of padding that a span may have at most; None for any number.
    """
    first = tokens = longest = 0
    for end, length in enumerate(lengths):
        rows, longest = end - first + 1, max(longest, length)
        full = rows * longest > batch_tokens or rows * (cached + longest) > CACHED_BATCHES * batch_tokens
        wasteful = padding is not None and rows * longest - (tokens + length) > padding
        if (full or wasteful) and end > first:
            yield slice(first, end)
            first, tokens, longest = end, 0, length
        tokens += length
    yield slice(first, len(lengths))
