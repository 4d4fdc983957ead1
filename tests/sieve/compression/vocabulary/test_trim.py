"""A trimmed vocabulary: every text decodes as before, texts of kept tokens encode and score as before."""

import copy
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Tokenizer, PreTrainedTokenizerFast

import sieve
from sieve.compression.vocabulary.trim import task_sequences
from sieve.errors import InputError
from sieve.tasks import Task
from tests.tiny_models import TINY, randomise_, tiny_model, tiny_tokenizer

CORPUS = [
    "In which country is the city of Aachen? Germany",
    "naïve Zürich straße 北京 München 42,000",
    "the cat sat on the mat; the catalogue of cats",
    "don't   stop\n\n\ttabs",
    "aaaa abab bababa aab",
] * 4
WORDS = sorted({*" ".join(CORPUS).split()})
TEXTS = ["the cat sat on the mat", "naïve Germany"]
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def byte_level(ignore_merges=False, alphabet=True, size=400) -> Tokenizer:
    """A byte-level BPE with special tokens; without `alphabet`, bytes that the corpus lacks are no tokens."""
    made = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet() if alphabet else [],
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        show_progress=False,
    )
    made.train_from_iterator(CORPUS, trainer)
    made.add_tokens([AddedToken("Zürich", normalized=False), AddedToken("<extra>", special=True)])
    made.post_processor = processors.TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", made.token_to_id("<|im_start|>"))]
    )
    return made


def metaspace() -> Tokenizer:
    """As Llama 2 and Gemma have it: characters, and bytes for those that are no tokens."""
    made = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    made.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=500, special_tokens=special, show_progress=False))
    spec = json.loads(made.to_str())
    spec["added_tokens"] = spec["added_tokens"][:1]  # bytes are tokens like others there
    return Tokenizer.from_str(json.dumps(spec))


KINDS = {
    "byte-level": byte_level,
    "whole words first": lambda: byte_level(ignore_merges=True),
    "not all bytes": lambda: byte_level(alphabet=False),
    "byte fallback": metaspace,
}


def wrapped(backend: Tokenizer, chat=None) -> PreTrainedTokenizerFast:
    special = {"eos_token": "<|im_end|>", "bos_token": "<|im_start|>"} if backend.token_to_id("<|im_end|>") else {}
    return PreTrainedTokenizerFast(tokenizer_object=backend, chat_template=chat, **special)


def model_for(tokenizer, name="llama", spare=0, **changes):
    config = TINY[name]()
    config.vocab_size = len(tokenizer) + spare
    for key, value in ({"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0} | changes).items():
        setattr(config, key, value)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return randomise_(AutoModelForCausalLM.from_config(config)).eval()


def logits(model, ids):
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0]


@pytest.fixture(scope="module", params=KINDS)
def pair(request):
    """A tokenizer, its trimmed one, and the ids that stay."""
    full, small = (wrapped(KINDS[request.param]()) for _ in range(2))
    done = sieve.trim_vocabulary_(model_for(small), small, TEXTS)
    assert len(done.kept) == len(small) < len(full)
    return full, small, done.kept


texts = st.one_of(
    st.text(),
    st.text(alphabet=st.sampled_from("abcts thenmü\n<|>_▁")),
    st.lists(st.sampled_from([*WORDS, "<|im_start|>", "Zürich", "<unk>", "<0x41>", " "])).map("".join),
)


@given(text=texts)
@settings(max_examples=300, deadline=None)
def test_every_text_decodes_as_before_and_texts_of_kept_tokens_encode_as_before(pair, text):
    full, small, kept = pair
    text = text.encode("utf-8", "replace").decode()  # a lone surrogate is no text
    before, after = (one.encode(text, add_special_tokens=True) for one in (full, small))
    new_ids = {old: new for new, old in enumerate(kept)}
    if all(number in new_ids for number in before):
        assert after == [new_ids[number] for number in before]
    assert small.decode(after) == full.decode(before)
    assert small.decode(after, skip_special_tokens=True) == full.decode(before, skip_special_tokens=True)


@given(data=st.data())
@settings(max_examples=100, deadline=None)
def test_any_choice_of_tokens_is_closed(data):
    """Whatever texts choose the tokens: any text of tokens that stayed is read by them."""
    full, small = wrapped(byte_level()), wrapped(byte_level())
    chosen = data.draw(st.lists(st.sampled_from(WORDS), min_size=1, max_size=5))
    kept = sieve.trim_vocabulary_(model_for(small), small, chosen).kept
    new_ids = {old: new for new, old in enumerate(kept)}
    for text in [*chosen, *data.draw(st.lists(texts, max_size=20))]:
        text = text.encode("utf-8", "replace").decode()
        before, after = full.encode(text), small.encode(text)
        if all(number in new_ids for number in before):
            assert after == [new_ids[number] for number in before]
        assert full.decode(before) == small.decode(after)


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "gpt_neox", "phi3"])
def test_logits_at_kept_tokens_are_what_they_were(name, tmp_path):
    """Tied and untied heads, and spare rows of the table."""
    tokenizer = wrapped(byte_level())
    model = model_for(tokenizer, name, spare=5)
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    ids = tokenizer.encode(TEXTS[0])
    before, numbers = logits(model, ids), sum(one.numel() for one in model.parameters())
    done = sieve.trim_vocabulary_(model, tokenizer, TEXTS)
    rows, width = model.get_input_embeddings().weight.shape
    assert rows == len(done.kept) == model.config.vocab_size == len(tokenizer)
    assert done.before == rows + (numbers - sum(one.numel() for one in model.parameters())) // (width * (2 - tied))
    assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) == tied
    after = tokenizer.encode(TEXTS[0])
    assert [done.kept[number] for number in after] == ids
    assert torch.allclose(logits(model, after), before[:, list(done.kept)], atol=1e-4)
    sieve.save(model, tokenizer, tmp_path / "trimmed")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "trimmed")
    reader = AutoTokenizer.from_pretrained(tmp_path / "trimmed")
    for text in (*TEXTS, "quite unseen: 東京 straße"):
        assert reader.encode(text) == tokenizer.encode(text)
    assert torch.equal(logits(loaded, after), logits(model, after))
    assert loaded.generate(torch.tensor([after]), max_new_tokens=3).shape[1] > len(after)


def test_where_no_token_is_dropped_nothing_changes():
    tokenizer = wrapped(byte_level())
    model = model_for(tokenizer)
    ids = tokenizer.encode("abc")
    before = logits(model, ids)
    every = [tokenizer.decode([number]) for number in range(len(tokenizer))]
    done = sieve.trim_vocabulary_(model, tokenizer, [*every, *CORPUS, *WORDS])
    if len(done.kept) == done.before:
        assert torch.equal(logits(model, ids), before)
    assert torch.allclose(logits(model, [done.kept.index(one) for one in ids]), before[:, list(done.kept)], atol=1e-5)


def test_bias_of_the_head_follows():
    tokenizer = wrapped(byte_level())
    model = model_for(tokenizer, "qwen2")
    head = model.lm_head
    head.bias = torch.nn.Parameter(torch.arange(head.out_features, dtype=torch.float32))
    ids = tokenizer.encode(TEXTS[0])
    before = logits(model, ids)
    done = sieve.trim_vocabulary_(model, tokenizer, TEXTS)
    assert head.bias.tolist() == list(map(float, done.kept))
    assert torch.allclose(logits(model, tokenizer.encode(TEXTS[0])), before[:, list(done.kept)], atol=1e-3)


def test_ids_in_configurations_follow_and_their_tokens_stay():
    tokenizer = wrapped(byte_level())
    model = model_for(tokenizer, spare=4, eos_token_id=[2, 350], pad_token_id=-1)
    spare = len(tokenizer) + 1
    names = {"suppress_tokens": [340, 341], "bad_words_ids": [[330], [331, 332]], "eos_token_id": [2, 350],
             "pad_token_id": spare, "begin_suppress_tokens": None, "max_new_tokens": 350,
             "sequence_bias": [[[320, 321], -2.0]], "forced_decoder_ids": [[1, 322]]}  # fmt: skip
    for key, value in names.items():
        setattr(model.generation_config, key, copy.deepcopy(value))
    kept = sieve.trim_vocabulary_(model, tokenizer, TEXTS).kept
    found = model.generation_config
    assert [kept[number] for number in found.suppress_tokens] == [340, 341]
    assert [[kept[number] for number in ids] for ids in found.bad_words_ids] == [[330], [331, 332]]
    assert [kept[number] for number in found.eos_token_id] == [2, 350]
    assert [kept[number] for number in model.config.eos_token_id] == [2, 350]
    assert kept[found.pad_token_id] == spare
    assert found.max_new_tokens == 350
    assert [kept[number] for number in found.sequence_bias[0][0]] == [320, 321]
    assert (found.forced_decoder_ids[0][0], kept[found.forced_decoder_ids[0][1]]) == (1, 322)
    assert model.config.pad_token_id == -1


def test_chat_tokens_stay():
    tokenizer = wrapped(byte_level(), chat=CHAT)
    said = [{"role": "user", "content": "the cat"}, {"role": "assistant", "content": "sat"}]
    before = tokenizer.apply_chat_template(said, return_dict=False)
    kept = sieve.trim_vocabulary_(model_for(tokenizer), tokenizer, TEXTS).kept
    assert [kept[number] for number in tokenizer.apply_chat_template(said, return_dict=False)] == before
    assert tokenizer.eos_token_id == kept.index(2)


def test_a_class_that_builds_its_own_tokenizer_reads_its_file_alike(tmp_path):
    spec = json.loads(byte_level().to_str())["model"]
    merges = [tuple(pair) for pair in spec["merges"]]
    tokenizer = GPT2Tokenizer(vocab=spec["vocab"], merges=merges)
    model = model_for(tokenizer, "gpt2")
    sieve.trim_vocabulary_(model, tokenizer, TEXTS)
    sieve.save(model, tokenizer, tmp_path / "gpt2")
    _, loaded = sieve.load(tmp_path / "gpt2", device="cpu")
    assert type(loaded) is GPT2Tokenizer
    for text in (*TEXTS, "unseen 東京"):
        assert loaded.encode(text) == tokenizer.encode(text)
        assert loaded.decode(loaded.encode(text)) == text


def test_what_cannot_be_trimmed_is_refused_by_name_and_stays_as_it_is():
    def bad_suffix():
        return Tokenizer(models.BPE({"a</w>": 0, "a": 1}, [], end_of_word_suffix="</w>"))

    def no_decoder():
        made = byte_level()
        made.decoder = None
        return made

    cases = [(tiny_tokenizer(), "WordLevel.*only byte-pair"), (wrapped(bad_suffix()), "end of word suffix"),
             (wrapped(no_decoder()), "decoder")]  # fmt: skip
    for tokenizer, message in cases:
        model = model_for(tokenizer)
        state, read = copy.deepcopy(model.state_dict()), tokenizer.get_vocab()
        with pytest.raises(InputError, match=f"{type(tokenizer).__name__} cannot be trimmed.*{message}"):
            sieve.trim_vocabulary_(model, tokenizer, TEXTS)
        assert tokenizer.get_vocab() == read
        assert all(torch.equal(one, model.state_dict()[name]) for name, one in state.items())


def test_a_model_with_a_second_table_or_an_offset_is_refused_and_stays_as_it_is():
    class Second(torch.nn.Module):
        def __init__(self, model, rows, looks_up):
            super().__init__()
            self.table, self.offset = torch.nn.Embedding(rows, 1), torch.nn.Parameter(torch.ones(rows))
            forward = model.forward

            def with_table(input_ids, **kwargs):
                output = forward(input_ids, **kwargs)
                output.logits = output.logits + (self.table(input_ids) if looks_up else self.offset)
                return output

            model.forward = with_table

    for looks_up, message in ((True, "second.table is a second table"), (False, "depend on more than the rows")):
        tokenizer = wrapped(byte_level())
        model = model_for(tokenizer)
        model.second = Second(model, len(tokenizer), looks_up)
        ids = tokenizer.encode(TEXTS[0])
        before, vocabulary = logits(model, ids), tokenizer.get_vocab()
        with pytest.raises(InputError, match=message):
            sieve.trim_vocabulary_(model, tokenizer, TEXTS)
        assert torch.equal(logits(model, ids), before)
        assert tokenizer.get_vocab() == vocabulary
        assert model.config.vocab_size == len(tokenizer)


@pytest.mark.parametrize(("texts", "message"), [("one text", "a list of texts"), ([], "no texts")])
def test_texts_that_are_none(texts, message):
    with pytest.raises(InputError, match=message):
        sieve.trim_vocabulary_(tiny_model("llama"), tiny_tokenizer(), texts)


def test_a_dense_model_is_compared_over_the_same_tokens():
    full, small = wrapped(byte_level()), wrapped(byte_level())
    dense, student = model_for(full), model_for(small)
    kept = sieve.trim_vocabulary_(student, small, TEXTS).kept
    assert sieve.match_vocabulary_(dense, full, small).kept == kept
    ids = small.encode("quite another text")
    assert torch.equal(logits(dense, ids), logits(student, ids))
    assert sieve.match_vocabulary_(dense, small, small) is None
    with pytest.raises(InputError, match="another vocabulary"):
        sieve.match_vocabulary_(tiny_model("llama"), tiny_tokenizer(), small)


def test_tokens_of_a_task_are_those_that_it_has_the_model_read_and_write():
    tokenizer = wrapped(byte_level(), chat=CHAT)
    rows = [{"q": f"the cat {i}", "options": ["Germany", "naïve"], "a": i % 2} for i in range(20)]
    task = Task("t", "multiple_choice", rows, "Q: {q}", choices="options", answer="a", normalize="prior")
    examples = task.splits()["calibration"]
    found = {number for ids in task_sequences(tokenizer, task, examples) for number in ids}
    for one in examples:
        for text in (one.prompt + one.choices[1], one.neutral + one.choices[0]):
            assert set(tokenizer.encode(text)) <= found
    rows = [row | {"w": f"Germany {i}"} for i, row in enumerate(rows)]
    task = Task("t", "generation", rows, "{q}", answer="w", max_new_tokens=4, chat=True)
    texts = [tokenizer.decode(ids) for ids in task_sequences(tokenizer, task, task.splits()["calibration"])]
    assert any("Germany" in text and "<|im_start|>user" in text for text in texts)
