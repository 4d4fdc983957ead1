"""Where the scored part of a text begins."""

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from sieve.errors import InputError
from sieve.models.config import EMBEDDED_MODEL
from sieve.models.loading import load_model
from sieve.tasks import Example, Task, encode
from sieve.tasks.encoding import encode_choices, encode_target
from tests.tiny_models import tiny_tokenizer

TASK = Task("t", "generation", [{"q": "x", "a": "y"}], "{q}", answer="a")
CHAT = Task("t", "generation", [{"q": "x", "a": "y"}], "{q}", answer="a", chat=True)


def merging(template=None):
    """A tokenizer that merges "a b" over the border, and closes or opens texts by `template`."""
    vocabulary = {"<s>": 0, "</s>": 1, "a": 2, "b": 3, "c": 4, "ab": 5}
    tokenizer = Tokenizer(models.BPE(vocabulary, [("a", "b")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if template:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=template, special_tokens=[("<s>", 0), ("</s>", 1)]
        )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


def test_plain():
    tokenizer = tiny_tokenizer()
    ids, start = encode(tokenizer, TASK, Example("ask:"), " yes")
    assert tokenizer.decode(ids) == "ask: yes"
    assert tokenizer.decode(ids[start:]) == " yes"


def test_no_continuation():
    ids, start = encode(tiny_tokenizer(), TASK, Example("ask:"), "")
    assert start == len(ids) == 4


def test_a_token_over_the_border_is_scored():
    assert encode(merging(), TASK, Example("ca"), "b") == ([4, 5], 1)
    assert encode(merging(), TASK, Example("ca"), "c") == ([4, 2, 4], 2)


def test_choices_are_scored_from_one_place():
    """After "ca", "b" merges with the prompt's last token and "c" does not: both are scored from there."""
    both = encode_choices(merging(), TASK, "ca", ["b", "c"])
    assert both == [([4, 5], 1), ([4, 2, 4], 1)]
    assert encode_choices(merging(), TASK, "a", ["b", "c"]) == [([0, 5], 1), ([0, 2, 4], 1)]  # <s> before both


def test_a_space_at_the_end_of_the_prompt_is_paid_by_all():
    """The tokenizer joins a space to a letter behind it, not to a digit."""
    vocabulary = {"<s>": 0, ":": 1, "Ġ": 2, "a": 3, "Ġa": 4, "1": 5}
    model = Tokenizer(models.BPE(vocabulary, [("Ġ", "a")]))
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=model, bos_token="<s>", eos_token="<s>")
    assert encode_choices(tokenizer, TASK, ": ", ["a", "1"]) == [([1, 4], 1), ([1, 2, 5], 1)]
    example = Example(": ", ("a", "1"), 1)
    assert encode_target(tokenizer, TASK, example) == ([1, 2, 5], 1)
    assert encode(tokenizer, TASK, example, "1") == ([1, 2, 5], 2)


def test_something_always_comes_first():
    assert encode(merging(), TASK, Example("a"), "b") == ([0, 5], 1)  # the whole prompt merged away
    assert encode(merging(), TASK, Example(""), "ab") == ([0, 5], 1)


def test_special_tokens_of_the_tokenizer_are_kept_at_the_front_alone():
    tokenizer = merging("<s> $A </s>")
    assert encode(tokenizer, TASK, Example("c"), "ab") == ([0, 4, 5], 2)
    assert encode(tokenizer, TASK, Example(""), "ab") == ([0, 5], 1)
    assert encode(tokenizer, TASK, Example("c"), "") == ([0, 4], 2)


def test_end_of_text_opens_where_there_is_no_beginning():
    tokenizer = merging()
    tokenizer.bos_token = None
    assert encode(tokenizer, TASK, Example(""), "ab") == ([1, 5], 1)


def test_chat_template():
    tokenizer = tiny_tokenizer()
    turns = "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}"
    tokenizer.chat_template = turns + "{% if add_generation_prompt %}[model]{% endif %}"
    ids, start = encode(tokenizer, CHAT, Example("  ask:\n"), " yes")
    assert tokenizer.decode(ids) == "[user]ask:[model]yes"
    assert tokenizer.decode(ids[start:]) == "yes"


def test_chat_without_a_template():
    with pytest.raises(InputError, match=r"no chat template: set chat: false"):
        encode(tiny_tokenizer(), CHAT, Example("ask"), "yes")


@pytest.mark.model
class TestEmbeddedTokenizer:
    def test_a_word_keeps_its_space(self):
        tokenizer = load_model(EMBEDDED_MODEL)[1]
        ids, start = encode(tokenizer, TASK, Example("The capital of France is"), " Paris")
        assert tokenizer.decode(ids[start:]) == " Paris"
        assert len(ids) - start == 1

    def test_chat(self):
        tokenizer = load_model(EMBEDDED_MODEL)[1]
        ids, start = encode(tokenizer, CHAT, Example("Hello"), " yes")
        text = tokenizer.decode(ids[:start])
        assert text.count("<|im_start|>") == 3  # system, user and the model's turn, and no second beginning
        assert text.endswith("<|im_start|>assistant\n")
