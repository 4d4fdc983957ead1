"""`evaluate` against definitions written out in a few lines each."""

import math
import subprocess
import sys
import warnings
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from sieve.errors import InputError, NumericsError
from sieve.evaluation import scoring
from sieve.evaluation.generation import _Stop, greedy_answers
from sieve.evaluation.scoring import evaluate
from sieve.models.config import EMBEDDED_MODEL
from sieve.models.loading import load_model
from sieve.tasks import Example, Task, encode, load_task
from sieve.utils import progress
from tests.tiny_models import TINY, tiny_model, tiny_tokenizer

WORDS = ["tree", "a house", "Paris", "salt and pepper", "no", "the blue river"]


@pytest.fixture(scope="module")
def model():
    return tiny_model("llama")


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


def choice_task(**options):
    rows = [{"q": "?", "options": ["a", "b"], "answer": index} for index in (0, 1)]
    options = {"type": "multiple_choice", "choices": "options", "answer": "answer"} | options
    return Task(name="t", data=rows, prompt="{q}", **options)


def choice_examples(number=8):
    draw = np.random.default_rng(0)
    return [
        Example(
            prompt=f"Question {index}: {WORDS[index % len(WORDS)]}?",
            choices=tuple(f" {WORDS[place]}" for place in draw.permutation(len(WORDS))[:4]),
            answer=int(draw.integers(4)),
            neutral="Question: ?",
        )
        for index in range(number)
    ]


@torch.no_grad()
def loglik(model, tokenizer, prompt, continuation):
    """One sequence at a time; the tokenizer has one token per character."""
    ids = torch.tensor([tokenizer.encode(prompt + continuation)])
    logprobs = model(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
    return logprobs[-len(continuation) :].sum().item()


def joining_tokenizer():
    """A token per character, but " a" is one."""
    characters = {chr(code): code for code in range(33, 127)}
    model = Tokenizer(models.BPE({"<s>": 1, "Ġ": 2, "Ġa": 3, **characters}, [("Ġ", "a")]))
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return PreTrainedTokenizerFast(tokenizer_object=model, bos_token="<s>", eos_token="<s>")


@torch.no_grad()
def from_the_border(model, tokenizer, prompt, choice):
    """Log-likelihood of the choice and of the space before it."""
    ids = torch.tensor([tokenizer.encode(prompt + choice)])
    logprobs = model(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
    return logprobs[len(tokenizer.encode(prompt.rstrip())) - 1 :].sum().item()


class TestMultipleChoice:
    def judge(self, model, tokenizer, example, normalize):
        values = []
        for choice in example.choices:
            value = loglik(model, tokenizer, example.prompt, choice)
            if normalize == "length":
                value /= len(choice.strip())
            if normalize == "prior":
                value -= loglik(model, tokenizer, example.neutral, choice)
            values.append(value)
        return values

    @pytest.mark.parametrize("normalize", ["none", "length", "prior"])
    def test_the_likeliest_choice_is_the_answer(self, model, tokenizer, normalize):
        examples = choice_examples()
        scores = evaluate(model, tokenizer, choice_task(normalize=normalize), examples, batch_tokens=128)
        picked = [int(np.argmax(self.judge(model, tokenizer, example, normalize))) for example in examples]
        assert scores.score.tolist() == [
            float(pick == example.answer) for pick, example in zip(picked, examples, strict=True)
        ]

    def test_normalizations_disagree_here(self, model, tokenizer):
        """Otherwise the test above would show nothing."""
        picks = {
            normalize: [np.argmax(self.judge(model, tokenizer, e, normalize)) for e in choice_examples()]
            for normalize in ("none", "length", "prior")
        }
        assert picks["none"] != picks["length"] != picks["prior"] != picks["none"]

    @pytest.mark.parametrize("normalize", ["none", "length", "prior"])
    def test_loglik_is_that_of_the_right_answer_as_it_is(self, model, tokenizer, normalize):
        examples = choice_examples()
        scores = evaluate(model, tokenizer, choice_task(normalize=normalize), examples)
        want = [loglik(model, tokenizer, example.prompt, example.target) for example in examples]
        assert scores.loglik == pytest.approx(want, abs=1e-4)
        assert scores.accuracy == scores.score.mean()
        assert scores.mean_loglik == pytest.approx(np.mean(want), abs=1e-4)

    @pytest.mark.parametrize("normalize", ["none", "length", "prior"])
    def test_contrast_is_the_share_of_the_right_choice_as_choices_are_judged(self, model, tokenizer, normalize):
        examples = choice_examples()
        scores = evaluate(model, tokenizer, choice_task(normalize=normalize), examples, batch_tokens=128)
        want = []
        for example in examples:
            weights = np.exp(self.judge(model, tokenizer, example, normalize))
            want.append(np.log(weights[example.answer] / weights.sum()))
        assert scores.choice_logprob == pytest.approx(want, abs=1e-4)
        assert scores.ranking_score is scores.choice_logprob

    def test_order_does_not_matter(self, model, tokenizer):
        examples = choice_examples()
        forward = evaluate(model, tokenizer, choice_task(), examples)
        backward = evaluate(model, tokenizer, choice_task(), examples[::-1])
        assert backward.loglik[::-1] == pytest.approx(forward.loglik, abs=1e-5)
        assert backward.tokens == forward.tokens

    def test_a_prompt_beyond_the_context_loses_its_beginning(self, model, tokenizer):
        context = model.config.max_position_embeddings
        long = Example("x" * 400 + " end:", (" tree", " house"), 1)
        cut = Example("x" * (context - 4 - len(" house")) + " end:", (" tree", " house"), 1)
        scores = evaluate(model, tokenizer, choice_task(), [long])
        with torch.no_grad():
            ids = torch.tensor([tokenizer.encode(cut.prompt + " house")])
            assert ids.shape[1] == context + 1
        want = loglik(model, tokenizer, cut.prompt, " house")
        assert scores.loglik[0] == pytest.approx(want, abs=1e-4)

    def test_an_answer_beyond_the_context(self, model, tokenizer):
        with pytest.raises(InputError, match="longer than the model's context of 256 tokens"):
            evaluate(model, tokenizer, choice_task(), [Example("?", (" a", "b" * 300), 0)])

    def test_a_choice_that_begins_another_is_warned_of(self, model, tokenizer):
        examples = [Example("How many?", tuple(f" {number}" for number in range(1, 11)), 9)]
        with pytest.warns(UserWarning, match="'10' begins with the choice '1' .* use normalize: length"):
            evaluate(model, tokenizer, choice_task(), examples)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            evaluate(model, tokenizer, choice_task(normalize="length"), examples)
            evaluate(model, tokenizer, choice_task(), [Example("How many?", (" 1", " 2"), 0)])

    def test_a_warning_is_said_once_where_progress_is_shown(self, model, tokenizer, capsys):
        examples = [Example("How many cups?", (" one", " one hundred"), 0)]
        with progress.shown():
            for _ in range(2):
                evaluate(model, tokenizer, choice_task(), examples)
        assert capsys.readouterr().err.count("'one hundred' begins with the choice 'one'") == 1

    def test_choices_of_the_same_tokens_are_refused(self, model, tokenizer):
        with pytest.raises(InputError, match=r"'é' and 'ü' .* are the same tokens"):  # both unknown to this tokenizer
            evaluate(model, tokenizer, choice_task(), [Example("?", ("é", "ü"), 0)])

    @pytest.mark.parametrize("normalize", ["none", "prior"])
    def test_a_token_over_the_border_counts_for_all_choices(self, model, normalize):
        """The prompt ends in a space, which joins a word and stands alone before a digit."""
        tokenizer = joining_tokenizer()
        example = Example("x: ", ("ab", "1", "2"), 1, neutral=": ")
        scores = evaluate(model, tokenizer, choice_task(normalize=normalize), [example])
        wanted = []
        for choice in example.choices:
            value = from_the_border(model, tokenizer, example.prompt, choice)
            if normalize == "prior":
                value -= from_the_border(model, tokenizer, example.neutral, choice)
            wanted.append(value)
        assert scores.choice_logprob[0] == pytest.approx(wanted[1] - np.logaddexp.reduce(wanted), abs=1e-4)
        assert scores.loglik[0] == pytest.approx(from_the_border(model, tokenizer, "x: ", "1"), abs=1e-4)

    def test_leaves_the_model_as_it_was(self, tokenizer):
        model = tiny_model("llama").train()
        evaluate(model, tokenizer, choice_task(), choice_examples(2))
        assert model.training
        assert not any(module._forward_hooks for module in model.modules())

    def test_shows_progress(self, model, tokenizer, monkeypatch):
        shown = []

        @contextmanager
        def bar(description, total, unit, **_):
            yield lambda number: shown.append((description, total, unit, number))

        monkeypatch.setattr("sieve.progress.bar", bar)
        evaluate(model, tokenizer, choice_task(), choice_examples(6), batch_tokens=64)
        assert {step[:3] for step in shown} == {("multiple choice", 6, "questions")}
        assert len(shown) > 1
        assert sum(number for *_, number in shown) == 6


class TestGeneration:
    TASK = Task(
        name="g",
        type="generation",
        data=[{"q": "x", "a": "y"}],
        prompt="{q}",
        answer="a",
        max_new_tokens=8,
        metric="exact_match",
        stop=None,
    )

    @torch.no_grad()
    def greedy(self, model, tokenizer, prompt, steps):
        ids = tokenizer.encode(prompt)
        for _ in range(steps):
            following = int(model(torch.tensor([ids])).logits[0, -1].argmax())
            if following == tokenizer.eos_token_id:
                break
            ids.append(following)
        return tokenizer.decode(ids[len(tokenizer.encode(prompt)) :], skip_special_tokens=True).lstrip()

    @pytest.mark.parametrize("name", TINY)
    def test_padding_changes_no_answer(self, name, tokenizer):
        model = tiny_model(name)
        prompts = [f"{word}, " * (1 + index) for index, word in enumerate(WORDS)]
        ids = [tokenizer.encode(prompt) for prompt in prompts]
        answers, _ = greedy_answers(model, tokenizer, ids, 8, None, batch_tokens=200)
        assert answers == [self.greedy(model, tokenizer, prompt, 8) for prompt in prompts]

    def test_scores_and_loglik(self, model, tokenizer):
        right = self.greedy(model, tokenizer, "tree", 8)
        examples = [Example("tree", references=("!", right)), Example("house", references=("never",))]
        scores = evaluate(model, tokenizer, self.TASK, examples)
        assert scores.score.tolist() == [1.0, 0.0]
        want = [loglik(model, tokenizer, example.prompt, example.target) for example in examples]
        assert scores.loglik == pytest.approx(want, abs=1e-4)

    def test_stops_at_the_stop_text(self, model, tokenizer):
        ids = [tokenizer.encode("tree"), tokenizer.encode("a house")]
        whole, written = greedy_answers(model, tokenizer, ids, 8, None, 512)
        stop = whole[0][3]
        answers, shorter = greedy_answers(model, tokenizer, ids, 8, stop, 512)
        assert answers == [text.split(stop)[0] for text in whole]
        assert shorter < written

    def test_an_answer_may_open_with_the_stop_text(self, tokenizer):
        ids = torch.tensor([tokenizer.encode(text) for text in ("q:\n\n", "q:\na", "q:a\n")])
        assert _Stop(tokenizer, prompt=2, stop="\n")(ids, None).tolist() == [False, False, True]

    def test_the_models_own_sampling_settings_are_left_out(self, tokenizer):
        model = tiny_model("llama")
        before = greedy_answers(model, tokenizer, [tokenizer.encode("tree")], 8, None, 512)
        settings = model.generation_config
        settings.do_sample, settings.temperature, settings.repetition_penalty = True, 5.0, 3.0
        assert greedy_answers(model, tokenizer, [tokenizer.encode("tree")], 8, None, 512) == before
        assert model.generation_config is settings

    def test_nan_is_found_while_generating(self, tokenizer):
        model = tiny_model("llama")
        model.model.norm.weight.data[0] = float("inf")
        with pytest.raises(NumericsError, match=r"model\.norm\.weight"):
            greedy_answers(model, tokenizer, [tokenizer.encode("tree")], 8, None, 512)


class TestPerplexity:
    TASK = Task(name="p", type="perplexity", data=[{"text": "x"}], prompt="{text}")

    def test_mean_over_the_tokens(self, model, tokenizer):
        texts = ["salt", "the blue river is long"]
        scores = evaluate(model, tokenizer, self.TASK, [Example("", references=(text,)) for text in texts])
        want = []
        for text in texts:
            ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer.encode(text)]])
            with torch.no_grad():
                logprobs = model(ids).logits[0, :-1].log_softmax(-1)
            want.append(logprobs.gather(1, ids[0, 1:, None]).mean().item())
        assert scores.loglik == pytest.approx(want, abs=1e-4)
        assert scores.score == pytest.approx(np.exp(want), abs=1e-4)

    def test_long_texts_are_read_in_windows_that_score_each_token_once(self, model, tokenizer):
        text = "".join(chr(97 + index * 7 % 26) for index in range(600))
        scores = evaluate(model, tokenizer, self.TASK, [Example("", references=(text,))])
        context = model.config.max_position_embeddings
        ids = [tokenizer.bos_token_id, *tokenizer.encode(text)]
        total = 0.0
        for first in range(1, len(ids), context):
            window = torch.tensor([ids[first - 1 : first + context]])
            with torch.no_grad():
                logprobs = model(window[:, :-1]).logits[0].log_softmax(-1)
            total += logprobs.gather(1, window[0, 1:, None]).sum().item()
        assert scores.loglik[0] == pytest.approx(total / 600, abs=1e-4)
        assert scores.tokens == 600

    def test_windows_are_the_same_on_every_device(self, model, tokenizer, monkeypatch):
        """A device whose passes are larger reads the same pieces of a text, only more of them at a time."""
        monkeypatch.setattr(scoring, "WINDOW", 100)
        examples = [Example("", references=("".join(chr(97 + index * 7 % 26) for index in range(250)),))] * 3
        small = evaluate(model, tokenizer, self.TASK, examples)
        monkeypatch.setattr(scoring, "cells_of_a_pass", lambda device: 1 << 14)
        passes = []
        with model.register_forward_hook(lambda model, args, output: passes.append(output.logits.shape)):
            large = evaluate(model, tokenizer, self.TASK, examples)
        assert large.tokens == small.tokens == 3 * 250
        assert large.loglik == pytest.approx(small.loglik, abs=1e-5)
        assert len(passes) == 2  # the pieces of 100 tokens, and those of 50

    def test_texts_without_a_token_to_score_are_left_out(self, model):
        tokenizer = tiny_tokenizer()
        tokenizer.bos_token = tokenizer.eos_token = None  # nothing goes before the only token of a short text
        texts = ["salt", "x", "the blue river", "y"]
        examples = [Example("", references=(text,)) for text in texts]
        with pytest.warns(UserWarning, match="2 of 4 texts are too short to be scored and left out"):
            scores = evaluate(model, tokenizer, self.TASK, examples)
        want = evaluate(model, tokenizer, self.TASK, examples[::2])
        assert np.array_equal(scores.loglik, want.loglik)
        assert np.array_equal(scores.score, want.score)
        with pytest.raises(InputError, match="2 of 2 texts are too short to be scored: give"):
            evaluate(model, tokenizer, self.TASK, examples[1::2])


def test_no_examples(model, tokenizer):
    with pytest.raises(InputError, match="no examples"):
        evaluate(model, tokenizer, choice_task(), [])


def test_same_bits_in_a_new_process(model, tokenizer):
    code = (
        "from tests.sieve.evaluation.test_scoring import *\n"
        "scores = evaluate(tiny_model('llama'), tiny_tokenizer(), choice_task(normalize='prior'), choice_examples())\n"
        "print(scores.loglik.tobytes().hex())"
    )
    root = Path(__file__).parents[3]
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=True)
    scores = evaluate(model, tokenizer, choice_task(normalize="prior"), choice_examples())
    assert run.stdout.split()[-1] == scores.loglik.tobytes().hex()


@pytest.fixture(scope="module")
def embedded():
    return load_model(EMBEDDED_MODEL, dtype="bfloat16")


@pytest.mark.model
class TestEmbeddedModel:
    def test_knows_geography(self, embedded):
        task = load_task("geography")
        scores = evaluate(*embedded, task, task.splits()["test"][:60])
        assert 0.65 <= scores.accuracy <= 0.95
        assert scores.tokens < 60 * 15  # the shared parts of prompts and choices are run once

    def test_agrees_with_one_sequence_at_a_time(self, embedded):
        model, tokenizer = embedded
        task = load_task("geography")
        examples = task.splits()["test"][:6]
        # In float32: processors round products of bfloat16 in different places.
        wide, want = deepcopy(model).float(), []
        for example in examples:
            ids, start = encode(tokenizer, task, example, example.target)
            with torch.no_grad():
                logprobs = wide(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
            want.append(logprobs.gather(1, torch.tensor(ids)[1:, None])[start - 1 :].sum().item())
        scores = evaluate(model, tokenizer, task, examples)
        assert scores.loglik == pytest.approx(want, abs=0.15)  # bfloat16
        assert math.isfinite(scores.mean_loglik)
