"""Products in the dtype that a processor multiplies fast."""

from collections import Counter

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from sieve.calibration.collect import calibrate
from sieve.compression.low_rank.project import project
from sieve.evaluation.scoring import evaluate
from sieve.healing.config import LABEL_FREE
from sieve.healing.heal import heal_, lessons_of
from sieve.models.linears import prunable
from sieve.searchers.sensitivity import sensitivity
from sieve.tasks import load_task
from sieve_kernels.core import wide_products
from tests.tiny_models import tiny_model, tiny_tokenizer


def test_no_16_bit_products_where_they_are_slow(monkeypatch):
    """Outside of our operators, which have tests of their own."""
    monkeypatch.setattr(wide_products, "multiplies_slowly", lambda dtype: dtype.itemsize == 2)
    model, tokenizer, task = tiny_model("llama").bfloat16(), tiny_tokenizer(), load_task("geography")
    rows = task.splits()["calibration"][:40]
    # The look at how layers are used is a pass over few tokens, of the layers as they are.
    prunable(model)
    found = Counter()

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default):
                found[args[-1].dtype] += 1
            return func(*args, **(kwargs or {}))

    with Watch():
        statistics = calibrate(model, tokenizer, task, 1000, "widths")
        factors = project(model, statistics, "widths")
        sensitivity(model, tokenizer, factors, task, rows)
        evaluate(model, tokenizer, task, rows)
        heal_(model, lessons_of(model, tokenizer, task, rows, 2, LABEL_FREE), 2, 0, LABEL_FREE)
    assert found[torch.float32] > 10
    assert not found[torch.bfloat16]
