"""A start in the middle must not change a bit, for every architecture; one that cannot is found out."""

import pytest
import torch

from sieve.evaluation.likelihood import score
from sieve.models.blockwise import BlockwiseRunner
from sieve.models.decoder import run_decoder
from tests.sieve.evaluation.test_likelihood import OTHERS, other_model, questions
from tests.tiny_models import TINY, tiny_model, tiny_tokens


def evaluation(model, asked):
    return lambda: score(model, asked, 64, "test")[0]


@pytest.mark.parametrize("name", [*TINY, *OTHERS])
def test_same_bits_from_the_middle(name):
    model = tiny_model(name) if name in TINY else other_model(name)
    asked = questions(number=5)
    plain = score(model, asked, 64, "test")[0]
    with BlockwiseRunner(model) as blocks, torch.inference_mode():
        evaluation(model, asked)()  # a pass of the model itself, which runs whole
        whole, first = blocks.run(evaluation(model, asked), keep=[1])
        evaluation(model, asked)()
        part, second = blocks.run(evaluation(model, asked), 1, first.states[1])
        assert blocks.can_start_midway(evaluation(model, asked), lambda one, two: one == two)
    assert plain == whole == part
    assert first.layer_tokens == 2 * first.cells
    assert second.layer_tokens == second.cells == first.cells
    assert second.head_rows == first.head_rows
    assert score(model, asked, 64, "test")[0] == plain  # the model is as it was


@pytest.mark.parametrize("name", [*TINY, *OTHERS])
def test_one_block_at_a_time(name):
    """Each on what the block before left: the same bits as all in one pass, and nothing else runs."""
    model = tiny_model(name) if name in TINY else other_model(name)
    ids, mask = tiny_tokens(), torch.ones_like(tiny_tokens())
    with BlockwiseRunner(model) as blocks, torch.inference_mode():
        _, whole = blocks.run(lambda: run_decoder(model, ids, mask), keep=range(len(blocks) + 1))
        states = whole.states[0]
        for block in range(len(blocks)):
            _, part = blocks.run(lambda: run_decoder(model, ids, mask), block, states, [block + 1], stop=block + 1)
            states = part.states[block + 1]
            assert part.layer_tokens == ids.numel()
            assert torch.equal(states[0], whole.states[block + 1][0])
        _, none = blocks.run(lambda: run_decoder(model, ids, mask), keep=[0], stop=0)
        assert none.layer_tokens == 0
        assert torch.equal(none.states[0][0], whole.states[0][0])


def test_the_states_decide_and_skipped_blocks_do_not_run():
    """Block 0 of another model, block 1 of this one: the same as a model made of both."""
    one, two = tiny_model("llama"), tiny_model("llama", seed=1)
    asked = questions(number=4)
    with torch.inference_mode():
        with BlockwiseRunner(one) as blocks:
            _, run = blocks.run(evaluation(one, asked), keep=[1])
        with BlockwiseRunner(two) as blocks:
            mixed, _ = blocks.run(evaluation(two, asked), 1, run.states[1])
    two.model.layers[0] = one.model.layers[0]
    two.model.embed_tokens.weight.data, tied = one.model.embed_tokens.weight.data, two.model.embed_tokens.weight.data
    two.lm_head.weight = torch.nn.Parameter(tied)
    assert mixed == score(two, asked, 64, "test")[0]


def test_a_model_that_looks_behind_its_blocks_is_found_out():
    model = tiny_model("llama")
    seen = []
    first, second = model.model.layers
    first.self_attn.register_forward_hook(lambda module, args, output: seen.append(output[0]))
    second.mlp.register_forward_hook(lambda module, args, output: output + seen[-1])
    asked = questions(number=4)
    with BlockwiseRunner(model) as blocks, torch.inference_mode():
        assert not blocks.can_start_midway(evaluation(model, asked), lambda one, two: one == two)
