"""Shortcuts are used where they give a model's plain result, and there alone."""

import pytest
import torch
from transformers import AutoModelForCausalLM, BertConfig, OpenAIGPTConfig
from transformers.modeling_outputs import BaseModelOutput, CausalLMOutput

from sieve import calibrate
from sieve.errors import InputError
from sieve.evaluation.likelihood import EVERYTHING, can_reuse_cache, logits_at, score
from sieve.evaluation.scoring import evaluate, prepare
from sieve.evaluation.shortcuts import allowed, verified
from sieve.tasks import Task
from sieve.utils import progress
from tests.all_architectures import tiny_random
from tests.sieve.evaluation.test_likelihood import OTHERS, naive, other_model, questions
from tests.sieve.evaluation.test_scoring import choice_examples, choice_task
from tests.tiny_models import TINY, VOCABULARY, tiny_model, tiny_tokenizer, tiny_tokens


def built(config):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.mul_(7)
    return model


def openai_gpt():
    return built(OpenAIGPTConfig(vocab_size=VOCABULARY, n_positions=256, n_embd=32, n_layer=2, n_head=4))


def bert(is_decoder):
    return built(
        BertConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=64,
            max_position_embeddings=256,
            is_decoder=is_decoder,
        )
    )


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_models_that_can_all(name, dtype):
    assert verified(tiny_model(name, dtype=dtype), questions(), EVERYTHING) == EVERYTHING


@pytest.mark.parametrize("name", OTHERS)
def test_models_with_a_peculiarity(name):
    assert verified(other_model(name), questions(), EVERYTHING) == EVERYTHING


def test_a_model_without_a_cache():
    model, asked = openai_gpt(), questions()
    sharing = verified(model, asked, EVERYTHING)
    assert not sharing.prefix
    assert sharing.rows
    assert allowed(model) == sharing
    got, _ = score(model, asked, 64, "", sharing)
    want = [[naive(model, one) for one in question] for question in asked]
    for values, expected in zip(got, want, strict=True):
        assert values == pytest.approx(expected, abs=1e-4, rel=0)


def test_a_cache_that_stays_empty_is_noticed_however_little_it_shows():
    config = OpenAIGPTConfig(vocab_size=VOCABULARY, n_positions=256, n_embd=32, n_layer=12, n_head=4)
    model = AutoModelForCausalLM.from_config(config).to(torch.bfloat16).eval()
    assert not verified(model, questions(), EVERYTHING).prefix


def test_it_is_told_once(capsys):
    model = openai_gpt()
    with progress.shown():
        for _ in range(2):
            evaluate(model, tiny_tokenizer(), choice_task(), choice_examples())
    assert capsys.readouterr().err.count("OpenAIGPTLMHeadModel scores otherwise") == 1


def test_a_model_that_mixes_rows_is_evaluated_row_by_row():
    model = tiny_model("llama")
    layer = model.model.layers[0]
    layer.register_forward_hook(lambda module, args, output: output + output.mean(0, keepdim=True))
    asked = questions(number=4)
    sharing = verified(model, asked, EVERYTHING)
    assert not sharing.rows
    got, _ = score(model, asked, 64, "", sharing)
    for values, question in zip(got, asked, strict=True):
        assert values == pytest.approx([naive(model, one) for one in question], abs=1e-4, rel=0)
    assert prepare(model, tiny_tokenizer(), choice_task(), choice_examples()).run_copies is None


def test_a_head_that_needs_all_positions():
    model = tiny_model("llama")
    model.lm_head.register_forward_hook(lambda module, args, output: output * (1 + output.shape[1] / 256))
    assert not verified(model, questions(), EVERYTHING).logits


def test_few_logits_where_the_head_is_called_decoder():
    """ModernBERT calls its head the decoder."""
    model, heights = tiny_random("modernbert-decoder"), []
    assert verified(model, questions(), EVERYTHING).logits
    model.get_output_embeddings().register_forward_pre_hook(lambda _, args: heights.append(args[0].shape[:-1].numel()))
    cells = torch.tensor([[0, 3], [1, 2]])
    with torch.no_grad():
        few = logits_at(model, tiny_tokens(2, 20), cells)
        assert heights == [2]
        every = model(input_ids=tiny_tokens(2, 20)).logits
    torch.testing.assert_close(few, every[cells[:, 0], cells[:, 1]], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["output", "tuple", "tensor"])
def test_few_logits_of_decoders_that_return(kind):
    class Decoder(torch.nn.Embedding):
        def forward(self, ids):
            hidden = super().forward(ids)
            return {"output": BaseModelOutput(hidden, (hidden,)), "tuple": (hidden, None), "tensor": hidden}[kind]

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.decoder, self.head = Decoder(VOCABULARY, 8), torch.nn.Linear(8, VOCABULARY)

        def get_decoder(self):
            return self.decoder

        def get_output_embeddings(self):
            return self.head

        def forward(self, input_ids, **_):
            output = self.decoder(input_ids)
            hidden = output if kind == "tensor" else output[0]
            self.rows = hidden.shape[:-1].numel()
            return CausalLMOutput(logits=self.head(hidden))

    model, ids, cells = Model(), tiny_tokens(2, 20), torch.tensor([[0, 3], [1, 2]])
    few = logits_at(model, ids, cells)
    assert model.rows == 2
    torch.testing.assert_close(few, model(ids).logits[cells[:, 0], cells[:, 1]])


@pytest.mark.parametrize("name", ["deepseek_v32", "inkling_text"])
def test_caches_that_keep_more_than_keys_and_values_are_not_cut(name):
    """An index of the keys; the state of a convolution."""
    model = tiny_random(name)
    assert not can_reuse_cache(model)
    found, _ = score(model, questions(), 256, "scores")
    for question, values in zip(questions(), found, strict=True):
        for sequence, value in zip(question, values, strict=True):
            assert value == pytest.approx(naive(model, sequence), abs=1e-3)


def test_models_that_see_what_follows_are_refused():
    with pytest.raises(InputError, match="BertLMHeadModel is not a causal language model"):
        evaluate(bert(False), tiny_tokenizer(), choice_task(), choice_examples())
    evaluate(bert(True), tiny_tokenizer(), choice_task(), choice_examples())


def test_they_are_refused_before_calibration():
    rows = [{"q": f"word {i}", "a": "yes" if i % 2 else "no"} for i in range(200)]
    task = Task("t", "multiple_choice", rows, "{q}", [" yes", " no"], "a")
    with pytest.raises(InputError, match="BertLMHeadModel is not a causal language model"):
        calibrate(bert(False), tiny_tokenizer(), task, tokens=512)
    assert 256 < calibrate(bert(True), tiny_tokenizer(), task, tokens=512).tokens <= 512


def test_once_per_model(monkeypatch):
    model, runs = tiny_model("llama"), []
    model.register_forward_pre_hook(lambda *_: runs.append(1))
    prepare(model, tiny_tokenizer(), choice_task(), choice_examples())
    first = len(runs)
    prepare(model, tiny_tokenizer(), choice_task(), choice_examples())
    assert 0 < first == len(runs) < 25
