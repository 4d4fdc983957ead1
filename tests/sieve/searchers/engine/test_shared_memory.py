"""An object and its tensors come back as they were: bits, layout, identity."""

import numpy as np
import pytest
import torch

from tests.sieve.searchers.engine.test_engine import drawn_plans, svd_factors
from tests.tiny_models import TINY, tiny_model, tiny_tokens

pytest.importorskip("ray")

from sieve.searchers.engine.shared_memory import pack, unpack


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool])
@pytest.mark.parametrize("shape", [(), (0,), (5,), (4, 3), (2, 3, 4)])
def test_tensors(dtype, shape):
    tensor = (10 * torch.randn(shape)).to(dtype)
    elastic = tensor.permute(tuple(range(tensor.dim()))[::-1])
    frame, arrays, code = pack({"one": tensor, "two": [elastic, tensor]})
    assert all(array.dtype == np.uint8 for array in arrays)
    assert len(arrays) == (1 if tensor.dim() < 2 else 2)  # one memory, one array
    again = unpack((frame, arrays, code))
    assert torch.equal(again["one"], tensor)
    assert again["one"] is again["two"][1]
    assert torch.equal(again["two"][0], elastic)
    if tensor.numel():
        assert again["two"][0].stride() == elastic.stride()


@pytest.mark.parametrize("name", TINY)
def test_a_model_that_is_set_to_plans(name):
    """With its weights as views of the arrays, tied where they were, and set by the setter that came with it."""
    model = tiny_model(name)
    plan, ids = drawn_plans(model, 1)[0], tiny_tokens()
    with svd_factors(model).elastic(model) as elastic, torch.inference_mode():
        frame, arrays, code = pack((model, elastic.set_plan))
        elastic.set_plan(plan)
        want = model(ids).logits
    copy, set_plan = unpack((frame, arrays, code))
    tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert (copy.get_input_embeddings().weight is copy.get_output_embeddings().weight) == tied
    assert sum(array.nbytes for array in arrays) > sum(p.nbytes for p in model.parameters())  # and the factors
    assert len(frame) < 100_000
    with torch.inference_mode():
        set_plan(plan)
        assert torch.equal(copy(ids).logits, want)
        arrays[0][:] = 0
        assert not torch.equal(copy(ids).logits, want)


def test_functions_of_the_user_s_own():
    weight = torch.ones(3)
    assert unpack(pack(lambda x: x * weight))(2).tolist() == [2, 2, 2]
