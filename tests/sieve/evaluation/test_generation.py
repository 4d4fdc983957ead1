"""Written answers: those of each prompt alone, at no more than what the plain evaluation costs."""

import json

import numpy as np
import pytest
import torch

import sieve
from sieve.errors import NumericsError
from sieve.evaluation.generation import greedy_answers, score_and_answer, write_answers
from sieve.evaluation.likelihood import EVERYTHING, Continuation, Sharing
from sieve.evaluation.scoring import prepare
from sieve.evaluation.shortcuts import verified
from sieve.models.decoder import decoder_blocks
from sieve.searchers.engine.journal import Journal
from sieve.searchers.run import run_search
from sieve.tasks import load_task
from tests.all_architectures import tiny_random
from tests.sieve.evaluation.test_likelihood import OTHERS, naive, other_model
from tests.sieve.models.test_halving import small_memory
from tests.sieve.searchers.engine.test_engine import drawn_plans, engine_of
from tests.tiny_models import TINY, VOCABULARY, tiny_model, tiny_tokenizer, tiny_tokens

TOKENIZER = tiny_tokenizer()
QUICK = {"generations": 1, "population": 4, "offspring": 4, "bottlenecks": 0}
ECHO = """\
name: echo
type: generation
data: words.jsonl
prompt: "{word}"
answer: reply
max_new_tokens: 6
"""


def words(number=160, seed=0):
    draw = np.random.default_rng(seed)
    return ["".join(chr(97 + code) for code in draw.integers(0, 26, draw.integers(2, 40))) for _ in range(number)]


@pytest.fixture(scope="module")
def echo(tmp_path_factory):
    """A model that writes small letters, and a task of prompts of many lengths without anything in common."""
    folder, model = tmp_path_factory.mktemp("echo"), tiny_model("gpt_neox", seed=1)
    with torch.no_grad():
        small = torch.tensor([chr(token).islower() for token in range(model.config.vocab_size)])
        model.get_output_embeddings().weight[~small] = 0
    rows = [{"word": word, "reply": word[:3] if i % 2 else "ab"} for i, word in enumerate(words())]
    (folder / "words.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "echo.yaml").write_text(ECHO)
    return model, load_task(str(folder / "echo.yaml"))


def asked(number=9, seed=0, preamble=0):
    """Prompts of many lengths with right answers: most go on from the prompt, some are other tokens near its end or
    from its beginning on, as where tokens span the border or a long prompt is cut."""
    draw = np.random.default_rng(seed)

    def tokens(low, high):
        return draw.integers(3, VOCABULARY, draw.integers(low, high)).tolist()

    first, questions, prompts = tokens(preamble, preamble + 1), [], []
    for place in range(number):
        prompt = first + tokens(7, 20)
        known = prompt[: {4: -1, 7: 1}.get(place)]
        prompts.append(prompt)
        questions.append([Continuation(known + tokens(1, 6), len(known))])
    return questions, [*prompts[:-1], prompts[-1][:1]]


@torch.no_grad()
def plain_answer(model, prompt, steps, stop=None, ends=(2,)):
    """Greedy, the whole sequence read again for each token; its text, and how many tokens it has."""
    ids = list(prompt)
    while len(ids) < len(prompt) + steps:
        following = int(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax())
        if following in ends:
            break
        ids.append(following)
        if stop and stop in TOKENIZER.decode(ids[len(prompt) :]).lstrip():
            break
    text = TOKENIZER.decode(ids[len(prompt) :], skip_special_tokens=True).lstrip()
    return text.split(stop)[0] if stop else text, len(ids) - len(prompt)


def assert_plain(model, questions, prompts, steps=8, stop=None, ends=(2,), batch_tokens=2048, sharing=EVERYTHING):
    logliks, answers, _, written = score_and_answer(
        model, TOKENIZER, questions, prompts, steps, stop, batch_tokens, sharing
    )
    want = [plain_answer(model, prompt, steps, stop, ends) for prompt in prompts]
    assert answers == [text for text, _ in want]
    assert logliks == pytest.approx([naive(model, one) for (one,) in questions], abs=1e-4, rel=0)
    if sharing.steps:
        assert written == sum(length for _, length in want)
    return answers


@pytest.mark.parametrize("preamble", [0, 7])
@pytest.mark.parametrize("name", [*TINY, *OTHERS])
def test_answers_are_those_of_each_prompt_alone(name, preamble):
    model = tiny_model(name) if name in TINY else other_model(name)
    model.generation_config.eos_token_id = None
    assert_plain(model, *asked(preamble=preamble))


@pytest.mark.parametrize("name", ["bart", "pegasus", "camembert"])
def test_models_to_which_padding_matters(name):
    """They number positions by themselves, padding included."""
    model = tiny_random(name)
    settings = model.generation_config
    settings.eos_token_id, settings.pad_token_id, settings.forced_eos_token_id = 2, 0, None
    questions, prompts = asked()
    prompts[-1] = questions[-1][0].ids[:4]  # a row of one token is another case
    sharing = verified(model, questions, EVERYTHING)
    assert not sharing.steps
    _, answers, _, _ = score_and_answer(model, TOKENIZER, questions, prompts, 8, None, 2048, sharing)
    assert answers == [plain_answer(model, prompt, 8)[0] for prompt in prompts]


@pytest.mark.parametrize(
    ("name", "how"), [("rwkv", "one prompt after the other"), ("xlm", "by one full pass for each token")]
)
def test_models_whose_generate_writes_otherwise(name, how, monkeypatch):
    """States of several rows are mixed; a mask is read behind the prompt."""
    notes = []
    monkeypatch.setattr("sieve.utils.progress.note_once", notes.append)
    model = tiny_random(name)
    questions, prompts = asked()
    prompts = [prompt[:6] for prompt in prompts[:-1]] + prompts[-1:]  # of one length, so that a batch has several
    sharing = verified(model, questions, EVERYTHING)
    for stop in (None, " "):
        _, answers, _, _ = score_and_answer(model, TOKENIZER, questions, prompts, 8, stop, 2048, sharing)
        assert answers == [plain_answer(model, prompt, 8, stop)[0] for prompt in prompts]
    assert [note for note in notes if "`generate`" in note and how in note]


@pytest.mark.parametrize("batch_tokens", [1, 30, 100])
@pytest.mark.parametrize("sharing", [EVERYTHING, Sharing(padding=False), Sharing(rows=False), Sharing(steps=False)])
def test_in_any_batches(batch_tokens, sharing):
    assert_plain(tiny_model("llama"), *asked(preamble=3), batch_tokens=batch_tokens, sharing=sharing)


def test_it_ends_at_any_end_of_text_and_at_the_stop_text():
    model = tiny_model("llama")
    whole = assert_plain(model, *asked())
    stop, ends = whole[0][2], [ord(whole[1][1]), ord(whole[2][3])]
    model.generation_config.eos_token_id = ends
    for sharing in (EVERYTHING, Sharing(steps=False)):
        shorter = assert_plain(model, *asked(), stop=stop, ends=ends, sharing=sharing)
        assert sum(len(one) < len(two) for one, two in zip(shorter, whole, strict=True)) >= 3


def test_a_complete_answer_costs_nothing_more():
    model = tiny_model("llama")
    questions, prompts = asked()
    cells = []
    handle = model.model.layers[0].register_forward_hook(lambda module, args, _: cells.append(args[0].shape[:2]))
    *_, tokens, written = score_and_answer(model, TOKENIZER, questions, prompts, 8, None, 2048, EVERYTHING)
    handle.remove()
    steps = sum(rows for rows, length in cells if length == 1)
    assert written <= steps <= written + len(prompts) * 2  # the prompt's last tokens; the last one written is not read
    assert tokens == sum(len(one.ids) - 1 for (one,) in questions) + steps + len(prompts[7]) - 1


def test_numbers_that_are_not_finite_are_found():
    model = tiny_model("llama")
    questions, prompts = asked()
    count = []

    def spoil(module, args, output):
        count.append(1)
        return output * float("nan") if len(count) > 3 else output

    model.model.layers[1].mlp.register_forward_hook(spoil)
    with pytest.raises(NumericsError, match=r"it begins in model\.layers\.1|the model's output is not finite"):
        score_and_answer(model, TOKENIZER, questions, prompts, 8, None, 2048, EVERYTHING)


@pytest.mark.parametrize("search", ["uniform", "budget", "ga"])
def test_a_search_costs_no_more_than_plain_evaluations(echo, search):
    model, task = echo
    factors = sieve.project(model, sieve.calibrate(model, TOKENIZER, task, 1000))
    options = QUICK if search == "ga" else {}
    cost = run_search(
        model, TOKENIZER, factors, task, 0.9, search, rank_multiple=4, allow_no_signal=True, **options
    ).cost
    spent, plain, saved = cost["layer_tokens_spent"], cost["layer_tokens_plain"], cost["saved_by"]
    assert spent - cost["layer_tokens_overhead"] <= 0.75 * plain
    assert plain + cost["layer_tokens_overhead"] == spent + saved["prefix"] + saved["layers"] + saved["racing"]


def test_plain_counts_what_is_written(echo):
    model, task = echo
    examples = task.splits()["fitness"]
    (plan,) = drawn_plans(model, 1)
    with engine_of(model, task, examples, 1) as engine:
        scores, cost = engine.full(plan), engine.cost
    prompts = [TOKENIZER.encode(example.prompt) for example in examples]
    read = sum(len(TOKENIZER.encode(example.prompt + example.target)) for example in examples) + sum(map(len, prompts))
    assert prepare(model, TOKENIZER, task, examples).plain_tokens == read
    assert cost.plain_layer_tokens == (read + scores.written) * 2
    assert 0 < scores.written <= 6 * len(examples)


def test_scores_do_not_depend_on_what_ran_before(echo, tmp_path):
    model, task = echo
    examples, plans = task.splits()["fitness"], drawn_plans(model, 5)
    costs, found = [], []
    for _ in range(2):  # the journal answers the second time
        with Journal(tmp_path / "journal", {}) as journal, engine_of(model, task, examples, 1, journal=journal) as one:
            found.append(one.scores(plans, 0))
            costs.append(one.cost.summary())
    with engine_of(model, task, examples, 1) as one:
        found.append(one.scores(plans[::-1], 0)[::-1])
        costs.append(one.cost.summary())
    for other in found[1:]:
        for one, two in zip(found[0], other, strict=True):
            assert np.array_equal(one.loglik, two.loglik)
            assert np.array_equal(one.score, two.score)
            assert (one.written, one.tokens) == (two.written, two.tokens)
    assert costs[0] == costs[1] == costs[2]


def test_too_little_memory_for_all_answers_at_once():
    """On top of prompts that were run before, and by `generate`: the same answers, in halves."""
    model, tokenizer = tiny_model("llama").double(), tiny_tokenizer()
    prompts = [row[: 4 + number % 3].tolist() for number, row in enumerate(tiny_tokens(40, 6))]
    want = (
        write_answers(model, tokenizer, prompts, 6, None, 4096),
        greedy_answers(model, tokenizer, prompts, 6, None, 512),
    )
    with small_memory(decoder_blocks(model)[1][1], 12) as refused:
        got = write_answers(model, tokenizer, prompts, 6, None, 4096)
        steps = {shape for shape in refused if shape[1] == 1}
    with small_memory(decoder_blocks(model)[1][1], 12) as again:
        generated = greedy_answers(model, tokenizer, prompts, 6, None, 512)
    assert steps
    assert again
    assert (got, generated) == want
