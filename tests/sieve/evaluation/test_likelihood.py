"""Shared work must not change a result: the trie against one sequence at a time, for every kind of model."""

import random

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    CohereConfig,
    Gemma2Config,
    MambaConfig,
    MistralConfig,
    Qwen3NextConfig,
)

from sieve.errors import NumericsError
from sieve.evaluation.likelihood import EVERYTHING, Continuation, Sharing, batches, score
from sieve.models.decoder import decoder_blocks
from tests.float64 import Float64, in_float64
from tests.sieve.models.test_halving import small_memory
from tests.tiny_models import TINY, VOCABULARY, tiny_model

_WIDTHS = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 72,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
OTHERS = {  # what a shortcut could get wrong: windows, soft caps, logit scales, ALiBi, recurrent states
    "mistral, window 6": lambda: MistralConfig(**_WIDTHS, head_dim=8, sliding_window=6),
    "gemma2": lambda: Gemma2Config(**_WIDTHS, head_dim=8, sliding_window=6, final_logit_softcapping=0.3),
    "cohere": lambda: CohereConfig(**_WIDTHS, logit_scale=0.0625),
    "bloom": lambda: BloomConfig(vocab_size=VOCABULARY, hidden_size=32, n_layer=2, n_head=4),
    "mamba": lambda: MambaConfig(vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, state_size=4),
    "qwen3_next": lambda: Qwen3NextConfig(
        **_WIDTHS,
        head_dim=8,
        layer_types=["linear_attention", "full_attention"],
        linear_num_key_heads=2,
        linear_num_value_heads=2,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
        num_experts=2,
        num_experts_per_tok=1,
        moe_intermediate_size=16,
        shared_expert_intermediate_size=16,
    ),
}


def other_model(name):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(OTHERS[name]())
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.mul_(8)  # so that every layer shows in the output
        return model.float().eval()


def questions(seed=0, number=12, preamble=5):
    """Questions with one common preamble, prompts of many lengths and choices of 1 to 6 tokens."""
    draw = random.Random(seed)

    def tokens(low, high):
        return [draw.randrange(3, VOCABULARY) for _ in range(draw.randint(low, high))]

    first = tokens(preamble, preamble)
    result = []
    for _ in range(number):
        prompt = first + tokens(1, 15)
        start = len(prompt)
        result.append([Continuation(prompt + tokens(1, 6), start) for _ in range(draw.randint(1, 5))])
    return result


@torch.no_grad()
def naive(model, sequence):
    ids = torch.tensor([sequence.ids])
    logprobs = model(ids, use_cache=False).logits[0, :-1].double().log_softmax(-1)
    picked = logprobs.gather(1, ids[0, 1:, None])[:, 0]
    return picked[sequence.start - 1 :].sum().item()


def assert_equal_to_naive(model, asked, batch_tokens=64, sharing=EVERYTHING):
    """The same log-likelihoods as one sequence at a time, in float64, where 1e-9 leaves room for rounding only."""
    wide = in_float64(model)
    with Float64():
        result, tokens = score(wide, asked, batch_tokens, "test", sharing)
        want = [naive(wide, sequence) for question in asked for sequence in question]
    assert [len(values) for values in result] == [len(question) for question in asked]
    assert [value for values in result for value in values] == pytest.approx(want, abs=1e-9, rel=0)
    return tokens


def assert_rounds_like_naive(model, asked):
    """In the model's own float32, no further from the float64 result than one sequence at a time is, times four.

    What one pass may lose depends on the model, not on the processor; which digits it loses depends on both. Our
    log-softmax is rounded to float32 besides, twice the result's own precision at most.
    """
    wide = in_float64(model)
    with Float64():
        exact = np.array([naive(wide, sequence) for question in asked for sequence in question])
    want = np.array([naive(model, sequence) for question in asked for sequence in question])
    got = np.array([value for values in score(model, asked, 64, "test")[0] for value in values])
    allowed = 4 * np.abs(want - exact).max() + 2 * np.finfo(np.float32).eps * np.abs(exact).max()
    assert np.abs(got - exact).max() <= allowed


@pytest.mark.parametrize("name", TINY)
def test_equal_to_one_sequence_at_a_time(name):
    assert_equal_to_naive(tiny_model(name), questions())
    assert_rounds_like_naive(tiny_model(name), questions())


@pytest.mark.parametrize("name", OTHERS)
def test_models_with_a_peculiarity(name):
    assert_equal_to_naive(other_model(name), questions())
    assert_rounds_like_naive(other_model(name), questions())


@pytest.fixture(scope="module")
def model():
    return tiny_model("llama")


class TestSharing:
    @pytest.mark.parametrize("batch_tokens", [1, 7, 40, 4096])
    def test_any_batch_size(self, model, batch_tokens):
        assert_equal_to_naive(model, questions(number=6), batch_tokens)

    def test_every_shared_token_is_run_once(self, model):
        common, first, second = [5, 6, 7], [10, 11], [20, 21, 22]
        asked = [
            [Continuation([*common, *first, 30], 5), Continuation([*common, *first, 31, 32], 5)],
            [Continuation([*common, *second, 30, 33], 6), Continuation([*common, *second, 30, 34, 35], 6)],
        ]
        # 3 common, 2 + 4 of the questions (both choices of the second begin with 30), then 31 and 34; last ones never
        assert assert_equal_to_naive(model, asked) == 3 + 2 + 4 + 1 + 1

    def test_recurrent_models_share_nothing(self):
        asked = questions(number=3)
        tokens = assert_equal_to_naive(other_model("mamba"), asked)
        assert tokens == sum(len(sequence.ids) - 1 for question in asked for sequence in question)

    def test_the_boundary_may_differ_between_choices(self, model):
        asked = [[Continuation([5, 6, 7, 8], 3), Continuation([5, 6, 9, 8, 10], 2), Continuation([5, 40], 1)]]
        assert_equal_to_naive(model, asked)

    def test_nothing_in_common(self, model):
        assert_equal_to_naive(model, [[Continuation([5, 6], 1), Continuation([7, 8, 9], 1)], [Continuation([9, 4], 1)]])

    def test_a_choice_that_begins_another(self, model):
        assert_equal_to_naive(model, [[Continuation([5, 6, 7], 1), Continuation([5, 6, 7, 8], 1)]] * 2)

    @pytest.mark.parametrize("off", ["prefix", "logits", "padding", "all"])
    def test_each_can_be_switched_off(self, model, off):
        asked = questions()
        sharing = Sharing(False, False, False) if off == "all" else Sharing(**{off: False})
        assert_equal_to_naive(model, asked, sharing=sharing)
        rows = []
        handle = model.lm_head.register_forward_pre_hook(lambda module, args: rows.append(args[0].shape[:-1].numel()))
        _, tokens = score(model, asked, 64, "", sharing)
        handle.remove()
        own = sum(len(sequence.ids) - 1 for question in asked for sequence in question)
        assert (tokens == own) == (not sharing.prefix)
        assert (sum(rows) >= tokens) == (not sharing.logits)

    def test_one_question(self, model):
        assert_equal_to_naive(model, questions(number=1))

    def test_same_bits_again(self, model):
        assert score(model, questions(), 64, "")[0] == score(model, questions(), 64, "")[0]

    def test_the_head_runs_on_predicted_rows_only(self, model):
        rows = []
        handle = model.lm_head.register_forward_pre_hook(lambda module, args: rows.append(args[0].shape[:-1].numel()))
        score(model, [[Continuation([5, 6, 7, 8, 9, 10], 5)], [Continuation([5, 6, 20, 21], 2)]], 64, "")
        handle.remove()
        assert sum(rows) <= 1 + 1 + 2  # one for the common beginning, which predicts nothing itself

    def test_without_a_decoder_to_hook(self, model, monkeypatch):
        monkeypatch.setattr(type(model), "get_decoder", lambda self: self)
        assert_equal_to_naive(model, questions(number=4))


def test_nan_names_the_weight():
    model = tiny_model("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[3, 4] = float("nan")
    with pytest.raises(NumericsError, match=r"weight model\.layers\.1\.mlp\.down_proj\.weight"):
        score(model, questions(number=2), 64, "")


def test_overflow_names_the_layer():
    model = tiny_model("llama")
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight.fill_(1e38)
    with pytest.raises(NumericsError, match=r"begins in model\.layers\.0\.mlp\.\w+_proj"):
        score(model, questions(number=2), 64, "")


class TestTooLittleMemory:
    """A pass that breaks off in its middle runs in halves."""

    @pytest.mark.parametrize("name", ["llama", "phi3", "gpt2", "opt", "gpt_neox"])
    @pytest.mark.parametrize("cells", [24, 60])
    def test_same_result(self, name, cells):
        model, asked = in_float64(tiny_model(name)), questions(number=20)
        with Float64():
            want, tokens = score(model, asked, 128, "")
            with small_memory(decoder_blocks(model)[1][1], cells) as refused:
                got, again = score(model, asked, 128, "")
        assert refused
        assert tokens == again
        assert [one for values in got for one in values] == pytest.approx(
            [one for values in want for one in values], abs=1e-12, rel=0
        )

    def test_caches_that_are_kept(self, model):
        asked = [[Continuation(one[0].ids, one[0].start)] for one in questions(number=9)]
        kept = []
        for cells in (1 << 20, 30):
            caches = {}

            def keep(numbers, layers, caches=caches):
                caches |= {
                    number: [part[row] for pair in layers for part in pair] for row, number in enumerate(numbers)
                }

            with small_memory(decoder_blocks(model)[1][1], cells):
                score(model, asked, 128, "", keep=keep)
            kept.append(caches)
        assert kept[0].keys() == kept[1].keys() == set(range(9))
        for number, parts in kept[0].items():
            for one, two in zip(parts, kept[1][number], strict=True):
                torch.testing.assert_close(one, two, rtol=0, atol=1e-4)

    def test_a_single_row_that_does_not_fit_is_an_error(self, model):
        with small_memory(decoder_blocks(model)[1][1], 2), pytest.raises(torch.OutOfMemoryError):
            score(model, questions(number=3), 64, "")


def test_batches_fill_up_to_the_limit():
    spans = list(batches([1, 2, 3, 3, 4, 9], cached=0, batch_tokens=9))
    assert spans == [slice(0, 3), slice(3, 5), slice(5, 6)]


def test_batches_of_any_order_go_by_the_longest_row():
    assert list(batches([4, 1, 1, 5, 1], cached=0, batch_tokens=9)) == [
        slice(0, 2),
        slice(2, 3),
        slice(3, 4),
        slice(4, 5),
    ]


def test_batches_bound_the_padding():
    assert list(batches([1, 1, 2, 5, 5], cached=0, batch_tokens=99, padding=4)) == [slice(0, 3), slice(3, 5)]


def test_batches_bound_the_cache():
    assert list(batches([1] * 4, cached=15, batch_tokens=4)) == [slice(0, 2), slice(2, 4)]


def test_a_long_row_goes_alone():
    assert list(batches([5, 50, 60], cached=0, batch_tokens=10)) == [slice(0, 1), slice(1, 2), slice(2, 3)]
