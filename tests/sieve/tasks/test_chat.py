"""Conversations and pairs of prompt and answer: what is scored, after which prompt, and what is refused."""

import json
import math

import pytest
import torch

import sieve
from sieve.calibration.text import calibration_sequences
from sieve.errors import InputError
from sieve.evaluation.scoring import evaluate
from sieve.tasks import Task, encode, load_task
from sieve.tasks.chat import chat_answer, turns_of
from sieve.tasks.row import Row
from sieve.utils import progress
from tests.tiny_models import tiny_model, tiny_tokenizer

PLAIN = (
    "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}~\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
# Drops what was thought before the last answer, as templates of reasoning models do.
FORGETFUL = (
    "{% for m in messages %}[{{ m['role'] }}]"
    "{{ m['content'] if loop.last else m['content'].split('=')[-1] }}~\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
# Opens an answer with its reasoning, and remembers answers without.
OPENING = PLAIN.replace("[assistant]{% endif %}", "[assistant]<think>{% endif %}")
DROPPING = PLAIN.replace("{{ m['content'] }}", "{{ m['content'] if m['role'] != 'assistant' else 'said' }}")


def conversation(number, turns=2, system=True):
    said = [{"role": "system", "content": "Be short."}] if system else []
    for turn in range(turns):
        said.append({"role": "user", "content": f"What is {number} and {turn}?"})
        said.append({"role": "assistant", "content": f"think=it is {number + turn}"})
    return said


ROWS = [{"id": number, "messages": conversation(number, 1 + number % 3)} for number in range(60)]


@pytest.fixture
def tokenizer():
    made = tiny_tokenizer()
    made.chat_template = PLAIN
    return made


@pytest.fixture(scope="module")
def model():
    return tiny_model("llama")


def chat_task(type="perplexity", rows=ROWS, **options):
    return Task("chat", type, rows, messages="messages", **options)


def texts(tokenizer, task, example):
    ids, start = encode(tokenizer, task, example, example.target)
    return tokenizer.decode(ids[:start]), tokenizer.decode(ids[start:])


def test_every_answer_is_scored_after_its_own_prompt(tokenizer):
    """The template's end of a turn belongs to the answer: a model must learn to stop."""
    parts = chat_task().splits()
    every = [example for part in parts.values() for example in part]
    three = [example for example in every if example.where.startswith("data row 3 ")]
    found = dict(texts(tokenizer, chat_task(), example) for example in three)
    first = "[system]Be short.~\n[user]What is 2 and 0?~\n[assistant]"
    second = first + "think=it is 2~\n[user]What is 2 and 1?~\n[assistant]"
    third = second + "think=it is 3~\n[user]What is 2 and 2?~\n[assistant]"
    assert found == {first: "think=it is 2~", second: "think=it is 3~", third: "think=it is 4~"}


def test_a_template_that_rewrites_earlier_turns_moves_no_answer(tokenizer):
    tokenizer.chat_template = FORGETFUL
    task = chat_task()
    every = [example for part in task.splits().values() for example in part]
    (last,) = (example for example in every if example.where == "data row 3 turn 7")
    prompt, answer = texts(tokenizer, task, last)
    assert "think=it is 2" not in prompt
    assert "it is 2~" in prompt
    assert answer == "think=it is 4~"


def test_a_template_that_opens_answers_otherwise_than_it_remembers_them(tokenizer):
    tokenizer.chat_template = OPENING
    turns = (("user", "What?"),)
    assert chat_answer(tokenizer, chat_task(), turns, "That.") == ("[user]What?~\n[assistant]", "That.~")
    tokenizer.chat_template = OPENING.replace("{{ m['content'] }}", "{{ m['content'] if m['role'] == 'user' }}")
    with pytest.raises(InputError, match="does not write an answer behind its prompt"):
        chat_answer(tokenizer, chat_task(), turns, "That.")


def test_a_conversation_is_in_one_split():
    parts = chat_task().splits(seed=1)
    rows = {name: {example.where.split(" turn ")[0] for example in part} for name, part in parts.items()}
    assert sum(map(len, rows.values())) == len(set().union(*rows.values())) == 60


@torch.no_grad()
def mean_logprob(model, tokenizer, prompt, answer):
    ids = torch.tensor([tokenizer.encode(prompt + answer, add_special_tokens=False)])
    logprobs = model(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
    return logprobs[-len(answer) :].mean().item()


def test_answers_are_scored_by_their_likelihood(model, tokenizer):
    task = chat_task()
    examples = task.splits()["test"][:9]
    scores = evaluate(model, tokenizer, task, examples)
    for example, score, loglik in zip(examples, scores.score, scores.loglik, strict=True):
        wanted = mean_logprob(model, tokenizer, *texts(tokenizer, task, example))
        assert loglik == pytest.approx(wanted, abs=1e-4)
        assert score == pytest.approx(math.exp(wanted), abs=1e-4)


@pytest.mark.parametrize("chat", [False, True])
def test_pairs_of_prompt_and_answer(model, tokenizer, chat):
    rows = [{"q": f"What is {number}?", "a": f"It is {number % 7}."} for number in range(40)]
    task = Task("pairs", "perplexity", rows, "Q: {q}\nA:", answer="a", chat=chat)
    examples = task.splits()["test"][:5]
    scores = evaluate(model, tokenizer, task, examples)
    for example, loglik in zip(examples, scores.loglik, strict=True):
        prompt, answer = texts(tokenizer, task, example)
        assert answer.strip(" ~") == example.references[0]
        assert prompt.endswith("[assistant]" if chat else "A:")
        assert loglik == pytest.approx(mean_logprob(model, tokenizer, prompt, answer), abs=1e-4)


def test_answers_of_a_conversation_are_written_after_all_of_it(model, tokenizer):
    task = chat_task("generation", stop=None, max_new_tokens=4)
    examples = task.splits()["test"]
    assert len({example.where.split(" turn ")[0] for example in examples}) == len(examples)
    assert evaluate(model, tokenizer, task, examples[:3]).written > 0
    asked = [{"id": 1, "messages": conversation(3)[:-1]}, {"id": 2, "messages": conversation(3)}]
    first, second = sieve.predict(model, tokenizer, task, asked)
    assert first.answer == second.answer
    assert (first.row, second.row) == tuple(asked)


def test_calibration_reads_conversations(tokenizer):
    task = chat_task()
    examples = task.splits()["calibration"]
    samples = calibration_sequences(tokenizer, task, examples, 2000, 256)
    for sample, example in zip(samples[:5], examples, strict=False):
        prompt, answer = texts(tokenizer, task, example)
        assert (tokenizer.decode(sample.ids[: sample.start]), tokenizer.decode(sample.ids[sample.start :])) == (
            prompt,
            answer,
        )


def test_long_conversations_lose_their_beginning(model, tokenizer):
    rows = [{"messages": conversation(number, 9)} for number in range(10)]
    task = chat_task(rows=rows)
    examples = [one for part in task.splits().values() for one in part]
    scores = evaluate(model, tokenizer, task, examples)
    assert len(scores.score) == 90


@pytest.mark.parametrize(
    ("value", "turns"),
    [
        ([{"role": "user", "content": "a"}], (("user", "a"),)),
        (json.dumps([{"role": "user", "content": "a"}]), (("user", "a"),)),
        ([{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}], (("user", "a"), ("assistant", "b"))),
        (
            [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}],
            (("user", "ab"),),
        ),
    ],
)
def test_how_data_writes_conversations(value, turns):
    assert turns_of(Row({"messages": value}, "row 1"), "messages") == turns


@pytest.mark.parametrize(
    "value",
    [
        None, "text", [], ["text"], [{"role": "user"}], [{"role": "user", "content": None}], 7, "[" * 9999,
        [{"role": "user", "content": [{"type": "image", "url": "x"}]}], [{"role": 1, "content": "a"}],
        [{"role": "user", "content": "\ud800"}],
    ],
)  # fmt: skip
def test_what_is_no_conversation(value):
    with pytest.raises(InputError, match=r"^row 1") as refusal:
        turns_of(Row({"messages": value}, "row 1"), "messages")
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"prompt": "{x}"}, "messages hold the whole conversation: remove prompt"),
        ({"answer": "x"}, "messages hold the whole conversation: remove answer"),
        ({"type": "generation", "shots": 1}, "messages hold the whole conversation: remove shots"),
        ({"type": "multiple_choice", "choices": ["a", "b"]}, "messages have no choices"),
    ],
)
def test_keys_that_cannot_stand_beside_messages(changes, words):
    with pytest.raises(InputError, match=words):
        Task(**{"name": "t", "type": "perplexity", "data": ROWS, "messages": "messages"} | changes)


def test_conversations_without_an_answer(tokenizer):
    asked = [{"messages": conversation(number)[:-1]} for number in range(9)]
    with pytest.raises(InputError, match="data row 1: the conversation must end with an answer"):
        chat_task("generation", asked).splits()
    with pytest.raises(InputError, match="messages names an unknown field"):
        chat_task(rows=[{"talk": []}]).splits()
    greeting = [{"messages": [{"role": "assistant", "content": "Hello"}]}]
    with pytest.raises(InputError, match="must have an answer of the assistant to the user"):
        chat_task(rows=greeting).splits()


def test_templates_that_refuse_or_lack(tokenizer):
    task = chat_task()
    (example, *_) = task.splits()["test"]
    tokenizer.chat_template = "{{ raise_exception('no system\nprompts') }}"
    with pytest.raises(InputError, match="refuses a conversation: no system prompts"):
        encode(tokenizer, task, example, "")
    tokenizer.chat_template = None
    with pytest.raises(InputError, match="no chat template: messages need one"):
        encode(tokenizer, task, example, "")


def test_a_template_that_prints_the_day_is_named(tokenizer, capsys):
    tokenizer.chat_template = "{{ strftime_now('%d') }}" + PLAIN
    task = chat_task()
    progress._noted.clear()
    with progress.shown():
        encode(tokenizer, task, task.splits()["test"][0], "")
    assert "prints the day" in capsys.readouterr().err


def test_a_task_file_of_messages(tmp_path):
    (tmp_path / "talk.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (tmp_path / "talk.yaml").write_text("type: perplexity\ndata: talk.jsonl\nmessages: messages\n")
    task = load_task(tmp_path / "talk.yaml")
    values = task.to_dict()
    assert values["messages"] == "messages"
    assert "prompt" not in values
    again = tmp_path / "again.yaml"
    again.write_text(json.dumps(values))
    assert load_task(again).splits()["test"] == task.splits()["test"]
