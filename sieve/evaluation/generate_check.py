"""Whether `generate` writes what a model predicts, for one prompt and for several at a time. Checked once per model.

Transformers prepares each architecture's inputs in its own way: XLM's reads a mask behind the prompt, and RWKV's mixes
the states of the rows of a batch.
"""

from collections.abc import Callable, Sequence
from weakref import WeakKeyDictionary

import torch
from transformers import PreTrainedModel

from sieve.utils import progress

# Tokens that `generate` writes behind each of two prompts.
TOKENS = 4
# Only this many tokens of a prompt are tried, to keep the check short.
_LONGEST = 64
_found: WeakKeyDictionary[PreTrainedModel, int] = WeakKeyDictionary()


def rows_of_generate(
    model: PreTrainedModel, prompts: Sequence[list[int]], write: Callable[[torch.Tensor], torch.Tensor]
) -> int:
    """How many prompts `generate` may be given at a time: 2 stands for any number; 0 where it writes something else.

    write: ids [rows, length] → the same with `TOKENS` more, by `generate`.
    """
    if model not in _found:
        pair = _pair(prompts)
        _found[model] = next((rows for rows in (2, 1) if _writes_plainly(model, pair, rows, write)), 0)
        if _found[model] < 2:
            how = "one prompt after the other" if _found[model] else "by one full pass for each token"
            progress.note_once(
                f"the `generate` of {type(model).__name__} does not write what the model predicts: answers are "
                f"written {how}"
            )
    return _found[model]


def _pair(prompts: Sequence[list[int]]) -> list[list[int]]:
    """Two different prompts of the shortest one's length; the second is the first reversed if all are the same."""
    first = min(prompts, key=len)[-_LONGEST:]
    ends = (prompt[-len(first) :] for prompt in prompts)
    return [first, next((end for end in ends if end != first), first[::-1])]


def _writes_plainly(
    model: PreTrainedModel, pair: list[list[int]], rows: int, write: Callable[[torch.Tensor], torch.Tensor]
) -> bool:
    length = len(pair[0])
    for batch in [pair] if rows == 2 else [[one] for one in pair]:
        for ids in write(torch.tensor(batch, device=model.device)).tolist():
            for place in range(length, len(ids)):
                given = torch.tensor([ids[:place]], device=model.device)
                logits = model(input_ids=given, use_cache=False, return_dict=True).logits[0, -1].float()
                # Two tokens that differ by rounding alone may change places.
                close = 32 * torch.finfo(model.dtype).eps * float(logits.abs().max().clamp(min=1))
                if float(logits.max() - logits[ids[place]]) > close:
                    return False
    return True
